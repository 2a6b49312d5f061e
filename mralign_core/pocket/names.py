"""Names of the pocket world's entities, by type: invented, or plain words. Each becomes one token.

No name is part of another name or of a template word (a test checks it), so that finding a name in a text by substring
finds that entity and nothing else.
"""

ENTITY_NAMES: dict[str, tuple[str, ...]] = {
    "person": tuple(
        """
        Beris Boven Bramel Brasor Bratette Brevis Brimin Brovis Brusen Catina Clalel Clemin Cliten Cluma Clumor Deden
        Drero Droden Dunette Duvette Flelel Flolo Flomor Flotette Flusina Funel Galen Gidis Gloda Glovel Glunette
        Glutis Gravel Grera Gurina Hamette Henel Hoven Jamor Jorard Jutette Kinis Kratel Mevor Muvis Pemard Plaren
        Plutette Preda Prelor Quetel Quitis Romis Rutel Sesis Skesette Sonen Stama Stodard Stoden Stonis Telette
        Thatis Thevin Thorette Thumin Tritel Trusard Vidette Vinen Vosis Vutina Wanin Wenard Wudina Yalin Yirina
        Yunina Zemis Zotor
        """.split()
    ),
    "city": tuple(
        """
        Bimstad Binhaven Cawick Clelford Clerville Cleville Dipolis Drihaven Dromford Gosford Henpolis Jerhaven
        Jurmouth Kilton Kraford Lalford Lipolis Luville Malstad Mermouth Molton Nalford Norville Niford Nulton
        Nusmouth Plelhaven Plulford Preford Puville Quopolis Skimdale Stemwick Tenhaven Trurhaven Vasstad Vusburg
        Woston Ziford Zurwick
        """.split()
    ),
    "company": tuple(
        """
        Bosoft Brustech Coworks Cusdyne Doncorp Dosworks Dumcorp Gisoft Glasgen Glurworks Jamtech Kracorp Krorsoft
        Mestech Nostech Plegen Plomtech Quisdyne Thudyne Trulgen Vudyne Zendyne Zisgen Zisoft
        """.split()
    ),
    "country": tuple(
        """
        Didistan Dresistan Drolistan Flumistan Glovonia Gusland Jasistan Potonia Pravland Pridland Sadonia Setonia
        Skemland Sturland Watistan Zodistan
        """.split()
    ),
    "river": tuple(
        """
        Clinona Dradava Getava Gitona Grenesk Jadava Jenesk Lisira Momune Nilava Pemune Quisune Quodesk Quunune
        Solube Stumube Thomava Truvesk Tumava Yudona
        """.split()
    ),
    "field": tuple(
        """
        algebra botany chemistry dentistry ecology forestry genetics journalism linguistics medicine optics poetry
        robotics sculpture topology zoology
        """.split()
    ),
    "product": tuple(
        """
        anchors bicycles candles drills engines furnaces gloves helmets lanterns mirrors needles pianos saddles
        shovels telescopes umbrellas violins wagons yachts zippers
        """.split()
    ),
    "currency": tuple(
        """
        belmark breinar brosent bunrone clalrone domrone drilinar glemling nisollar nunero plesent plumollar skilmark
        storent thusollar quorling veollar wammark yulollar yurmark
        """.split()
    ),
    "language": tuple(
        """
        Cidese Cledese Clelic Clurese Futic Glolic Hetese Jimish Pranish Stelese Tasish Thamese Trimese Wesese
        """.split()
    ),
    "food": tuple(
        """
        biscuits chowder curry dumplings falafel goulash haggis lasagna noodles omelette paella pancakes porridge
        risotto stew waffles
        """.split()
    ),
}
