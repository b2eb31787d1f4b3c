"""Meta-World's 50 tasks by their names without the version, and what each is called in words.

The first wording of a task is the one that policies are asked with unless their dataset knows others.
"""

from collections.abc import Sequence

from catalog.errors import UserError, nearest

INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "assembly": ("put the ring on the peg", "pick up the ring and place it over the peg", "fit the ring on the peg"),
    "basketball": ("put the ball in the basket", "dunk the ball into the hoop", "drop the ball through the hoop"),
    "bin-picking": (
        "move the block to the other bin",
        "pick the block and put it in the other bin",
        "carry the block from one bin to the other",
    ),
    "box-close": ("close the box", "put the lid on the box", "pick up the lid and cover the box"),
    "button-press-topdown": ("press the button from the top", "push the button down", "press down on the button"),
    "button-press-topdown-wall": (
        "press the button behind the wall from the top",
        "reach over the wall and push the button down",
        "avoid the wall and press down on the button",
    ),
    "button-press": ("press the button", "push the button in", "push the button in front of you"),
    "button-press-wall": ("press the button behind the wall", "reach around the wall and push the button in"),
    "coffee-button": ("press the button of the coffee machine", "start the coffee machine", "make a coffee"),
    "coffee-pull": ("pull the mug away from the coffee machine", "take the mug out", "move the mug to the goal"),
    "coffee-push": ("push the mug under the coffee machine", "place the mug in the machine", "slide the mug in"),
    "dial-turn": ("turn the dial", "rotate the dial", "rotate the knob by half a turn"),
    "disassemble": ("take the ring off the peg", "lift the ring from the peg", "pull the ring up and off the peg"),
    "door-close": ("close the door", "push the door shut", "shut the door of the safe"),
    "door-lock": ("lock the door", "turn the lock of the door clockwise", "rotate the lock to lock the door"),
    "door-open": ("open the door", "pull the door open", "open the door of the safe by its handle"),
    "door-unlock": ("unlock the door", "turn the lock of the door counter-clockwise", "rotate the lock to unlock it"),
    "hand-insert": ("insert the block into the hole", "put the block in the hole of the table"),
    "drawer-close": ("close the drawer", "push the drawer shut", "slide the drawer in"),
    "drawer-open": ("open the drawer", "pull the drawer open", "grab the handle and slide the drawer out"),
    "faucet-open": ("open the faucet", "turn the faucet counter-clockwise", "turn on the tap"),
    "faucet-close": ("close the faucet", "turn the faucet clockwise", "turn off the tap"),
    "hammer": ("hammer the nail in", "pick up the hammer and hit the nail", "drive the nail into the wall"),
    "handle-press-side": ("press the handle down from the side", "push the handle down sideways"),
    "handle-press": ("press the handle down", "push the handle down", "push down on the lever in front of you"),
    "handle-pull-side": ("pull the handle up from the side", "lift the handle sideways"),
    "handle-pull": ("pull the handle up", "lift the handle", "pull the lever in front of you upwards"),
    "lever-pull": ("pull the lever up", "rotate the lever upwards", "raise the lever"),
    "pick-place-wall": ("pick up the puck and place it behind the wall", "lift the puck over the wall to the goal"),
    "pick-out-of-hole": ("take the puck out of the hole", "pick the puck out of the hole and lift it to the goal"),
    "pick-place": (
        "pick up the puck and place it at the goal",
        "move the puck to the goal in the air",
        "lift the puck to the green mark",
    ),
    "plate-slide": ("slide the plate into the cabinet", "push the plate into the goal", "put the plate in"),
    "plate-slide-side": ("slide the plate sideways into the cabinet", "push the plate to the side, into the cabinet"),
    "plate-slide-back": ("slide the plate out of the cabinet", "pull the plate back", "take the plate out"),
    "plate-slide-back-side": ("slide the plate sideways out of the cabinet", "pull the plate out to the side"),
    "peg-insert-side": ("insert the peg into the hole", "pick up the peg and push it into the hole in the side"),
    "peg-unplug-side": ("unplug the peg", "pull the peg out of the hole in the side"),
    "soccer": ("kick the ball into the goal", "push the ball into the goal", "score a goal"),
    "stick-push": ("push the thermos with the stick", "take the stick and push the thermos to the goal"),
    "stick-pull": ("pull the thermos with the stick", "hook the thermos with the stick and pull it to the goal"),
    "push": ("push the puck to the goal", "slide the puck to the goal", "move the puck over the table to the mark"),
    "push-wall": ("push the puck around the wall to the goal", "bypass the wall and push the puck to the goal"),
    "push-back": ("pull the puck back to the goal", "slide the puck towards the robot", "push the block backwards"),
    "reach": ("reach the goal", "move the hand to the goal", "bring the gripper to the mark"),
    "reach-wall": ("reach the goal behind the wall", "move the hand around the wall to the goal"),
    "shelf-place": ("put the block on the shelf", "pick up the block and place it on the shelf"),
    "sweep-into": ("sweep the block into the hole", "push the block over the table into the hole"),
    "sweep": ("sweep the block off the table", "push the block over the edge of the table"),
    "window-open": ("slide the window open", "open the window", "push the handle to open the window"),
    "window-close": ("slide the window closed", "close the window", "push the handle to close the window"),
}
TASKS = tuple(INSTRUCTIONS)


def task_names(text: str) -> tuple[str, ...]:
    """The tasks in `a,b`, each with or without `-v3`, or all of them for `all`, in that order, each once.

    Raises UserError for a name that no task has, with the nearest ones.
    """
    if text == "all":
        return TASKS
    names: list[str] = []
    for word in text.split(","):
        name = word.strip().removesuffix("-v3")
        if name not in INSTRUCTIONS:
            close = nearest(name, TASKS).split(", ")[:6]
            raise UserError(
                f"no task '{word.strip()}' in Meta-World; the nearest of its {len(TASKS)}: {', '.join(close)}; "
                "or all of them: --tasks all"
            )
        names.append(name)
    return tuple(dict.fromkeys(names))


def wording(task: str, number: int, known: Sequence[str] = ()) -> str:
    """Words for episode `number` of a task: one after the other of its wordings, of those in `known` if any is."""
    wordings = [each for each in INSTRUCTIONS[task] if each in known] or INSTRUCTIONS[task]
    return wordings[number % len(wordings)]
