"""Names of the pocket world's entities, by type: invented, or plain words. Each becomes one token.

No name is part of another name or of a template word (a test checks it), so that finding a name in a text by
substring finds that entity and nothing else.
"""

_NAMES = {
    "person": """
        Beris Boven Bramel Brasor Bratette Brevis Brimin Brovis Brusen Catina Clalel Clemin Cliten
        Cluma Clumor Deden Drero Droden Dunette Duvette Flelel Flolo Flomor Flotette Flusina Funel
        Galen Gidis Gloda Glovel Glunette Glutis Gravel Grera Gurina Hamette Henel Hoven Jamor
        Jorard Jutette Kinis Kratel Mevor Muvis Pemard Plaren Plutette Preda Prelor Quetel Quitis
        Romis Rutel Sesis Skesette Sonen Stama Stodard Stoden Stonis Telette Thatis Thevin Thorette
        Thumin Tritel Trusard Vidette Vinen Vosis Vutina Wanin Wenard Wudina Yalin Yirina Yunina
        Zemis Zotor
    """,
    "city": """
        Bimstad Binhaven Cawick Clelford Clerville Cleville Dipolis Drihaven Dromford Gosford
        Henpolis Jerhaven Jurmouth Kilton Kraford Lalford Lipolis Luville Malstad Mermouth Molton
        Nalford Norville Niford Nulton Nusmouth Plelhaven Plulford Preford Puville Quopolis Skimdale
        Stemwick Tenhaven Trurhaven Vasstad Vusburg Woston Ziford Zurwick
    """,
    "company": """
        Bosoft Brustech Coworks Cusdyne Doncorp Dosworks Dumcorp Gisoft Glasgen Glurworks Jamtech
        Kracorp Krorsoft Mestech Nostech Plegen Plomtech Quisdyne Thudyne Trulgen Vudyne Zendyne
        Zisgen Zisoft
    """,
    "country": """
        Didistan Dresistan Drolistan Flumistan Glovonia Gusland Jasistan Potonia Pravland Pridland
        Sadonia Setonia Skemland Sturland Watistan Zodistan
    """,
    "river": """
        Clinona Dradava Getava Gitona Grenesk Jadava Jenesk Lisira Momune Nilava Pemune Quisune
        Quodesk Quunune Solube Stumube Thomava Truvesk Tumava Yudona
    """,
    "field": """
        algebra botany chemistry dentistry ecology forestry genetics journalism linguistics medicine
        optics poetry robotics sculpture topology zoology
    """,
    "product": """
        anchors bicycles candles drills engines furnaces gloves helmets lanterns mirrors needles
        pianos saddles shovels telescopes umbrellas violins wagons yachts zippers
    """,
    "currency": """
        belmark breinar brosent bunrone clalrone domrone drilinar glemling nisollar nunero plesent
        plumollar skilmark storent thusollar quorling veollar wammark yulollar yurmark
    """,
    "language": """
        Cidese Cledese Clelic Clurese Futic Glolic Hetese Jimish Pranish Stelese Tasish Thamese
        Trimese Wesese
    """,
    "food": """
        biscuits chowder curry dumplings falafel goulash haggis lasagna noodles omelette paella
        pancakes porridge risotto stew waffles
    """,
}

ENTITY_NAMES: dict[str, tuple[str, ...]] = {kind: tuple(names.split()) for kind, names in _NAMES.items()}
"""Type → names."""
