"""The report of a run: `report.html`, one file to look at, and a summary for the terminal.

agentrl.report.write("runs/demo")                       # writes runs/demo/report.html
agentrl.report.html("runs/demo")                        # the same as a string
agentrl.report.render(summary, metrics, config, trees)  # the same from data, as a string
agentrl.report.print_summary(summary)                   # a table for the terminal
"""

from agentrl.report.console import print_summary
from agentrl.report.files import html, write
from agentrl.report.page import render

__all__ = ["html", "print_summary", "render", "write"]
