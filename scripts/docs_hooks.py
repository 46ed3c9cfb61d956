"""What MkDocs cannot know by itself: README.md and CHANGELOG.md lie above docs/, and pages link to files of the repository.

Pages are read where they are, without a copy: README.md is the site's index. A linked file of the repository becomes a file of the site.
MkDocs checks links between pages; that their anchors exist is checked here, when all pages are written.
"""
import html.parser
import logging
import os
import pathlib
import posixpath
import re
import urllib.parse

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parents[1]
ABOVE = ("README.md", "CHANGELOG.md")
LINK = re.compile(r"(?<!`)(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")
FENCE = re.compile(r"^```(\w+) \{.*\}$", re.M)
log = logging.getLogger("mkdocs.docs_hooks")


def in_repository(page, target):
    """A link's target as a path from the repository's top."""
    folder = "" if page in ABOVE else "docs"
    return posixpath.normpath(posixpath.join(folder, urllib.parse.unquote(target)))


def in_site(path):
    return path[len("docs/"):] if path.startswith("docs/") else path


def on_files(files, config):
    for name in ABOVE:
        files.append(File(name, str(ROOT), config["site_dir"], config["use_directory_urls"]))
    for page in list(files.documentation_pages()):
        for _, target, _ in LINK.findall(pathlib.Path(page.abs_src_path).read_text(encoding="utf-8")):
            path = in_repository(page.src_uri, target)
            if (ROOT / path).is_file() and files.get_file_from_path(in_site(path)) is None:
                files.append(File(path, str(ROOT), config["site_dir"], config["use_directory_urls"]))
    return files


def on_page_markdown(markdown, page, config, files):
    here = posixpath.dirname(page.file.src_uri)

    def replace(match):
        path = in_repository(page.file.src_uri, match[2])
        return match[1] + posixpath.relpath(in_site(path), here or ".") + match[3]

    # Renderers take a fence's language alone; what else is said there is for tests/docs.
    return FENCE.sub(r"```\1", LINK.sub(replace, markdown))


def on_nav(nav, config, files):
    shown = {page.file.src_uri for page in nav.pages}
    for file in files.documentation_pages():
        if file.src_uri not in shown:
            log.warning("%s: expected it in the nav of mkdocs.yml, found it nowhere there", file.src_uri)
    return nav


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.ids, self.links = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.add(value)
            if name in ("href", "src") and value and not urllib.parse.urlsplit(value).scheme and not value.startswith("//"):
                self.links.append(value)


def on_post_build(config):
    site = pathlib.Path(config["site_dir"])
    pages = {file: Page(file.read_text(encoding="utf-8")) for file in sorted(site.rglob("*.html"))}
    for file, page in pages.items():
        for link in page.links:
            path, _, anchor = link.partition("#")
            target = pathlib.Path(os.path.normpath(file.parent / urllib.parse.unquote(path.partition("?")[0]))) if path else file
            if file.name == "404.html":
                continue  # its links are from the root of wherever the site is served
            if not target.exists():
                log.warning("%s: the link to '%s' leads nowhere", file.relative_to(site), link)
            elif anchor and target in pages and urllib.parse.unquote(anchor) not in pages[target].ids:
                log.warning("%s: the link to '%s' names an anchor that is not there", file.relative_to(site), link)
