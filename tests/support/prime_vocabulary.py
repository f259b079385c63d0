"""Put the RO-Crate vocabulary into the validator's cache, so that it validates without a network.

Run by the validator's own Python: prime_vocabulary.py CACHE VOCABULARY URL...
The vocabulary is the file that the `rocrate` package ships; it stands for the URLs that crates and profiles name. It is
that of a later RO-Crate than 1.1, in which the terms of Bioschemas are called otherwise.
"""

import io
import sys
from pathlib import Path

import requests
import requests_cache
from requests.adapters import BaseAdapter
from urllib3.response import HTTPResponse

HEADERS = {"Content-Type": "application/ld+json"}


class FileAdapter(BaseAdapter):
    """Answers every request with one file."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.content = file.read_bytes().replace(b"https://bioschemas.org/terms/", b"https://bioschemas.org/")

    def send(self, request: requests.PreparedRequest, **_: object) -> requests.Response:  # type: ignore[override]
        response = requests.Response()
        response.status_code, response.url, response.request = 200, str(request.url), request
        response.raw = HTTPResponse(body=io.BytesIO(self.content), headers=HEADERS, status=200, preload_content=False)
        response.headers.update(HEADERS)
        return response

    def close(self) -> None:
        pass


cache, vocabulary, *urls = sys.argv[1:]
session = requests_cache.CachedSession(cache)
session.mount("https://", FileAdapter(Path(vocabulary)))
for url in urls:
    session.get(url).raise_for_status()
