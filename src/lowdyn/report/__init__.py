"""From a folder of results to one self-contained page: verdicts, pictures, numbers beside the published ones.

``write_report`` reads files and writes ``index.html``; it computes nothing and imports nothing else of lowdyn.
"""

from lowdyn.report.page import write_report

__all__ = ["write_report"]
