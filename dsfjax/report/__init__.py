"""Floor 9: what a comparison found, as a page, as data files and as a terminal table."""

from dsfjax.aspects import Aspect as Aspect
from dsfjax.aspects import register as register
from dsfjax.report.joint import read_joint as read_joint
from dsfjax.report.table import render as render
from dsfjax.report.table import render_joint as render_joint
from dsfjax.report.verdict import Verdict as Verdict
from dsfjax.report.writer import Report as Report
from dsfjax.report.writer import Reports as Reports
from dsfjax.report.writer import write as write
from dsfjax.report.writer import write_all as write_all
