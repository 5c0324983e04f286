"""The commands of the command line, a file for each group of them.

Each `add_NAME(commands)` adds a parser whose `run` default is the function that does the work.
"""

from agentrl.commands.collecting import add_rollout, add_run
from agentrl.commands.data import add_report, add_select, add_train
from agentrl.commands.evaluating import add_eval
from agentrl.commands.exchanging import add_export, add_import
from agentrl.commands.machine import add_doctor, add_list, add_sandbox
from agentrl.commands.proxying import add_proxy
from agentrl.commands.reproducing import add_reproduce
from agentrl.commands.serving import add_serve_model
from agentrl.commands.viewing import add_view

COMMANDS = (
    add_run,
    add_rollout,
    add_select,
    add_train,
    add_eval,
    add_report,
    add_view,
    add_reproduce,
    add_export,
    add_import,
    add_proxy,
    add_sandbox,
    add_serve_model,
    add_list,
    add_doctor,
)

__all__ = ["COMMANDS"]
