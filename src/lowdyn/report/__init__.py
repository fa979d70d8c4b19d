"""From a folder of results to one self-contained page: verdicts, pictures, numbers beside the published ones.

``write_report`` reads files and writes ``index.html``; it computes nothing and imports nothing else of lowdyn.
``write_spectra`` writes the page of ``lowdyn inspect`` in the same style.
"""

from lowdyn.report.page import write_report
from lowdyn.report.spectra import write_spectra

__all__ = ["write_report", "write_spectra"]
