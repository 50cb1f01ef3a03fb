"""Many runs from one file: ``fedef sweep FILE.toml``.

The file::

    name = "k-and-alpha"          # of the report; default: the file's name
    seeds = 5                     # 0 to 4, the same for every cell (paired); or a list
    tune = {step-size = [0.1, 0.3, 1.0]}   # optional: the same grid for every group
    tune-seeds = [1000, 1001]     # disjoint from the seeds; default: 2, from 1000 on
    tune-per = ["method"]         # axes that each choose their own values; default: all of them
    tune-metric = "final-loss"    # or final-grad-norm, test-accuracy: mean over a group's runs

    [base]                        # keys of every run, see 'fedef keys'
    problem = "digits-mlp"
    num-rounds = 100

    [axes]
    dirichlet-alpha = [0.1, 1.0]  # an axis of one key

    [axes.method."EF21-SGDM"]     # an axis of named combinations: each sets several keys;
    method = "ef21-sgdm"          # a list in one is an axis of that combination alone
    k-fraction = [0.01, 0.1]

    [axes.method."dense SGDM"]
    method = "nsgdm"

A cell is one value of each axis, a run is a cell with a seed. What a sweep leaves in its folder::

    sweep.toml         the sweep, as it was given
    sweep.json         name; axes: {name: [values in order]}; columns: AXIS and KEY below; identity:
                       those of them that tell the cells apart; seeds; tune (grid, seeds, per,
                       metric and choices: [{group, values, edge, scores}]) or null; plan: hash of
                       sweep.toml; code: the version's hash; planned: runs of the whole sweep;
                       complete: those that ended, the rows; counts: {status: number of runs}
    runs/RUN/          every run that ended: config.toml, environment.json, rounds.jsonl,
                       summary.json; failure.json where it crashed. RUN is the hash of the
                       configuration, of the content of the files it names and of the code
    results.parquet    one row per run, below
    curves.parquet     one row per run and round, below
    timing.parquet     run, seconds (of its rounds), wall-seconds (with data and files): all that
                       differs when the same sweep is run again

``results.parquet``, in the order of the sweep, the tuning runs first:

=====================  =========================================================================
run                    name of its folder in ``runs/``
phase                  ``tune`` or ``report``
cell                   number of the cell, from 0
AXIS                   one column per axis, its value or its combination's name
KEY                    one column per key that varies in any way, by its name in the configuration
                       (an axis of the same name goes first); null where a combination lacks it
seed                   of the run
status                 ``completed``, ``diverged``, ``failed`` (an error) or ``killed``
error                  the error's last line, else null
stopped-by             the stop rule that ended it, ``num-rounds`` among them, else null
chosen                 tuning runs: whether their values were chosen
edge                   whether the values in use are at an end of the tuning grid
rounds, final-loss, final-grad-norm, test-accuracy, uplink-bytes, downlink-bytes, ...
                       every number and text of summary.json but the times; null where not known
config                 the whole configuration as JSON
=====================  =========================================================================

``curves.parquet``: ``run``, ``round``, every number of that line of rounds.jsonl but the time, and
``total-uplink-bytes``, ``total-downlink-bytes`` from the first round on.

``results.parquet`` and ``curves.parquet`` have the same content however often the sweep was
killed and called again, and for any number of workers. What failed or was killed is tried again at
the next call, as its cause may have been the machine's; what completed or diverged is not. A call
that is stopped leaves the tables of an earlier one where those hold more runs of the same file.
"""
