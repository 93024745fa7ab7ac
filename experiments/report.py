"""Reports on studies and runs: `python -m experiments.report --help`."""

from __future__ import annotations

import jax
from absl import flags

from experiments import cli
from experiments.inspecting import open_study_arms, page_of
from gpt_jax.ablation.compare import write_comparison
from gpt_jax.ablation.report import INSPECT, publish, write_report
from gpt_jax.ablation.results import write_results
from gpt_jax.ablation.schema import RUNS, STUDY
from gpt_jax.runs.folder import RunFolder

PAGE = """
Write the report of a study from what has run so far, or overlay the curves of some runs.

  python -m experiments.report --workdir=DIR [--publish=FOLDER]
  python -m experiments.report --compare RUN RUN ... [--output=FILE.html]
  python -m experiments.report --workdir=DIR --inspect=ARM[,OTHER] [--prompt=TEXT]

  --workdir=DIR          The study's folder. Collects what its runs have written so far into results.json, and
                         writes report.html, report.md and results.csv, and for a paper, in export/, the pictures
                         (SVG, PNG), the table (LaTeX, CSV) and a methods paragraph. The study may be running meanwhile.
  --publish=FOLDER       Also writes what can stand by itself, in a repository or on the web, into another folder:
                         report.html, report.md, results.csv and the claim.
  --inspect=ARM[,OTHER]  Also writes inspect.html, to which the report links from then on: the models of two arms, the
                         baseline and ARM or the two that are named, of the same seed, reading --prompt side by side.
  --prompt=TEXT          The text that they read. Default: the beginning of a document.
  --compare RUN RUN ...  Folders of runs, also unfinished ones; the first is the baseline of the others.
  --output=FILE.html     Where the comparison goes (comparison.html).
  --helpfull             All flags, those of the libraries too.

The page opens from disk without a network, on a desktop and on a phone, and prints.

Exit codes: 0 done, 1 failed, 2 wrong command line.
"""

flags.DEFINE_string("workdir", None, "The study's folder.")
flags.DEFINE_string("publish", None, "A folder for the pages alone.")
flags.DEFINE_list("inspect", None, "Two arms whose models stand side by side.")
flags.DEFINE_string("prompt", "", "The text that they read.")
flags.DEFINE_multi_string("compare", None, "Folders of runs.")
flags.DEFINE_string("output", "comparison.html", "Where the comparison goes.")
FLAGS = flags.FLAGS


def main() -> int:
    # A report needs no accelerator, and must not ask for the one that the study is running on.
    jax.config.update("jax_platforms", "cpu")
    if (FLAGS.workdir is None) == (FLAGS.compare is None):
        raise cli.UsageError("give either --workdir, the folder of a study, or --compare and the folders of some runs")
    if FLAGS.compare is not None and (FLAGS.publish is not None or FLAGS.inspect is not None):
        raise cli.UsageError("--publish and --inspect are for a study: give --workdir")
    if FLAGS.compare is not None:
        print(write_comparison(FLAGS.compare, FLAGS.output))
        return 0
    folder = RunFolder(FLAGS.workdir)
    if folder.exists(STUDY) and folder.exists(RUNS):  # without its runs there is only what was collected before
        write_results(FLAGS.workdir)
    if FLAGS.inspect is not None:
        page = page_of(open_study_arms(FLAGS.workdir, FLAGS.inspect), FLAGS.prompt, None)
        folder.write_text(INSPECT, page)
        print(folder.file(INSPECT))
    print(write_report(FLAGS.workdir))
    if FLAGS.publish is not None:
        print(publish(FLAGS.workdir, FLAGS.publish))
    return 0


if __name__ == "__main__":
    cli.run(main, PAGE, several="compare")
