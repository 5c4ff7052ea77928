"""Words that tasks are made of: our own lists, and what is drawn from them."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable

__all__ = ["ADJECTIVES", "GOODS", "NAMES", "NOUNS", "PLACES", "TOWNS", "Draw"]


def _listed(words: str) -> tuple[str, ...]:
    return tuple(words.split())


ADJECTIVES = _listed(
    "able amber ancient bitter blunt bold brave brief bright broad calm careful cheerful clever cloudy cold curious "
    "damp dark deep distant dusty eager early empty even faint fair famous fancy fierce firm flat fond fresh frosty "
    "gentle giant glad golden grand gray handy happy heavy hidden hollow honest humble idle jolly keen kind large late "
    "lazy lively lonely loud lucky mellow mighty modest narrow neat noble odd pale patient plain polite proud quick "
    "quiet rapid rare rough round rusty secret sharp shiny silent simple sleepy slim slow smooth sober soft solid "
    "steady steep stern strange sturdy subtle sunny sweet swift tall tender thin tidy tiny vast vivid warm weary wild "
    "wise witty young"
)
NOUNS = _listed(
    "acorn anchor apple arrow badge barrel basket beacon bell bench blanket boat bottle bridge brush bucket button "
    "cabin candle canyon carpet castle chain chair cliff cloak clock cloud coin compass copper corner cradle crown "
    "curtain dagger desk door drum eagle engine falcon feather fence field flag flute forest fork fountain garden gate "
    "glove grain hammer harbor hat hill horn island jacket jar kettle key kite ladder lake lamp lantern leaf lemon "
    "letter lever lid maple marble meadow mirror mountain needle nest oar ocean orchard paddle pearl pebble pencil "
    "piano pillow planet plough pocket pond quilt raft ribbon ring river road rope saddle sail scarf shell shield "
    "spoon stable statue stone stove table tent thread tower train trumpet tunnel valley vase violin wagon wall wheel "
    "whistle window wing"
)
NAMES = _listed(
    "Adela Anton Astrid Bastian Beatrix Boris Camille Casper Clara Cyril Dagny Daria Edwin Elsa Emil Esther Fabian "
    "Felix Fiona Gideon Greta Gustav Hanna Hector Helga Hugo Ida Ingrid Ivan Jasper Jonas Judith Kaspar "
    "Katja Klaus Konrad Lars Leah Leopold Linus Lotte Ludwig Magda Marek Milan Miriam Nadia Nils Nora Olga "
    "Oscar Otto Paula Petra Philipp Ragna Ralf Rosa Rufus Sabine Sigrid Simon Sofia Stefan Tamara Tilda Tobias Ulla "
    "Ursula Valentin Vera Viktor Walter Wanda Yusuf Zelda Zoltan"
)
#: Invented, so that no text and no model knows anything of them.
TOWNS = _listed(
    "Alderwick Amberholt Ashmarch Bellowmere Birchhaven Blackfenton Bramblegate Brindleford Calderstow Coldwharf "
    "Copperton Dunmarsh Elmhollow Emberfield Fallowmoor Fenbridge Foxmere Glimmerton Greywater Hartswell Hawkstead "
    "Hazelcombe Highfallow Hollowby Ironcombe Juniperton Kestrelby Kingsmarrow Larkhaven Lindermoor Lowbarrow "
    "Maplethorpe Marrowgate Mistlebury Mossgrove Netherwick Oakenfold Oldmarsh Otterburgh Pinewater Quillford "
    "Ravenmoor Redholm Rivergarth Rookhampton Saltmere Shadowby Silverstow Sparrowfield Stonewick Swanholt Tanglewood "
    "Thistledown Thornbarrow Underhill Wandleford Westermoor Whitfallow Willowgarth Winterholm Wolfenby Wrenbury "
    "Yarrowdale Yewbridge"
)
GOODS = _listed(
    "barrels baskets bottles boxes bricks bundles candles carpets coins crates hammers jars kettles lamps lanterns "
    "ledgers nails paddles parcels pillows planks ropes sacks saddles shovels spoons tiles trunks wheels"
)
PLACES = _listed(
    "attic bakery barn boathouse brewery cellar chapel depot dockyard foundry garage granary greenhouse hangar "
    "lighthouse market mill museum observatory pantry quarry refinery school shed shipyard stable station theater "
    "warehouse workshop"
)


class Draw:
    """Seeded random words, none of them drawn twice.

    Parameters
    ----------
    seed : str
        The same text draws the same things, on every machine.
    twice : bool
        Whether words may be drawn twice after all: where there is no end to them.
    """

    def __init__(self, seed: str, *, twice: bool = False) -> None:
        self.random = random.Random(seed)
        self._twice = twice
        self._taken: set[str] = set()

    def fresh(self, words: tuple[str, ...]) -> str:
        """A word of a list that has not been drawn before. The list must not be exhausted."""
        return self._once(lambda: self.random.choice(words))

    def key(self) -> str:
        """What a needle is for: ``gentle-harbor``."""
        return self._once(lambda: f"{self.random.choice(ADJECTIVES)}-{self.random.choice(NOUNS)}")

    def number(self, digits: int) -> str:
        """A whole number of so many digits."""
        return self._once(lambda: str(self.random.randrange(10 ** (digits - 1), 10**digits)))

    def letters(self, count: int) -> str:
        """Upper-case letters."""
        return self._once(lambda: "".join(self.random.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=count)))

    def uuid(self) -> str:
        """A random UUID of version 4."""
        return self._once(lambda: str(uuid.UUID(int=self.random.getrandbits(128), version=4)))

    def _once(self, draw: Callable[[], str]) -> str:
        while (word := draw()) in self._taken and not self._twice:
            pass
        self._taken.add(word)
        return word
