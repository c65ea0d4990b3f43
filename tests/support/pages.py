"""What tests of the report share: images that nobody looks at, and a reader of its page."""

from collections import Counter
from html.parser import HTMLParser

from bct.data.image_set import ImageSet


class Nothing(ImageSet):
    """So many images that nobody looks at."""

    fingerprint, mirror = "f" * 64, False

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count


class Reader(HTMLParser):
    """Counts of tags and ids, addresses, and per section its text and its tags; "" is the rest."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.addresses = Counter(), Counter(), []
        self.text, self.inside, self._section, self._style = {"": ""}, {"": Counter()}, "", False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags[tag] += 1
        if tag == "section":
            self._section = dict(attributes)["aria-labelledby"]
            self.text[self._section], self.inside[self._section] = "", Counter()
        self.inside[self._section][tag] += 1
        self._style = tag == "style"
        for name, value in attributes:
            if name == "id":
                self.ids[value] += 1
            if name in ("src", "href", "xlink:href"):
                self.addresses.append(value)

    def handle_endtag(self, tag):
        self._style = False
        if tag == "section":
            self._section = ""

    def handle_data(self, data):
        if not self._style:
            self.text[self._section] += data

    @property
    def words(self):
        """All text that can be read."""
        return " ".join(self.text.values())
