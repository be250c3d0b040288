"""Bad commands of `stability.run`: choices, keys, values and places that cannot be."""

import json
from typing import Any

from tests.bad_input.case import Case, cases, files_cases

CHOICES = [
    # arguments, and what the message must name: key, value, fix
    ("+sweep=nope", ["sweep=nope", "quickstart"]),
    ("+sweep=", ["sweep=", "quickstart"]),
    ("+sweep=nope seed=0,1", ["sweep=nope", "quickstart"]),
    ("tracking=mlflow seed=0,1", ["tracking=mlflow", "files, wandb"]),
    ("optimizer.lr=1 seed=0,1", ["optimizer.lr=1", "optimizer.learning_rate"]),
    ("+sweep=null", ["sweep=null", "quickstart"]),
    ("+sweep=../quickstart", ["sweep/..=quickstart", "quickstart"]),
    ("+sweep=[quickstart,nope]", ["sweep=nope", "z_loss"]),
    ("sweep=quickstart", ["sweep=quickstart", "+sweep=quickstart"]),
    ("+sweeps=quickstart", ["sweeps=quickstart", "sweep"]),
    ("sweps=quickstart", ["sweps=quickstart", "sweep"]),
    ("quickstart", ["argument=quickstart", "+sweep=quickstart"]),
    ("+sweep=quickstart scale=w7", ["scale=w7", "w48, w64, w96"]),
    ("+sweep=quickstart scale=w32,w7", ["scale=w7", "w48, w64, w96"]),
    ("+sweep=quickstart scale=", ["scale=", "w48, w64, w96"]),
    ("+sweep=quickstart model.qk_layernorm=off", ["model.qk_layernorm=off", "'none', 'per_head' or 'whole_width'"]),
    ("+sweep=quickstart model.qk_layernorm=none,sideways", ["model.qk_layernorm=sideways", "per_head"]),
    ("+sweep=quickstart +intervention=foo", ["intervention=foo", "qk_layernorm_none"]),
    ("+sweep=quickstart intervention=z_loss_none", ["intervention=z_loss_none", "+intervention=z_loss_none"]),
    ("+intervention=z_loss_none,foo", ["intervention=foo", "qk_layernorm_none"]),
    ("ladder=huge", ["ladder=huge", "micro"]),
    ("ladder=micro,mini", ["ladder=micro,mini", "one value"]),
    ("tracking=mlflow", ["tracking=mlflow", "files, wandb"]),
    ("tracking=files,wandb", ["tracking=files,wandb", "one value"]),
    ("data=tweets", ["data=tweets", "kjv, shards, text"]),
    ("data=kjv,text", ["data=kjv,text", "one value"]),
    ("model=small", ["model=small", "dictionary"]),
    ("optimiser=adam", ["optimiser=adam", "--cfg job"]),
    ("modle.width=64", ["modle.width=64", "model.width"]),
    ("trainning.steps=10", ["trainning.steps=10", "training.steps"]),
    ("optimizer.lr=1", ["optimizer.lr=1", "optimizer.learning_rate"]),
    ("+optimizer.lr=1", ["optimizer.lr=1", "optimizer.learning_rate"]),
    ("++optimizer.lr=1", ["optimizer.lr=1", "optimizer.learning_rate"]),
    ("optimizer.lr=1,2", ["optimizer.lr=1", "optimizer.learning_rate"]),
    ("+optimizer.lr=1,2", ["optimizer.lr=1", "optimizer.learning_rate"]),
    ("~optimizer.lr", ["optimizer.lr=", "optimizer.learning_rate"]),
    ("~optimizer.learning_rate=7", ["optimizer.learning_rate=7", "0.01"]),
    ("foo=1", ["foo=1", "--cfg job"]),
    ("+foo=1", ["foo=1", "--cfg job"]),
    ("+model.wdth=1", ["model.wdth=1", "model.width"]),
    ("+model.width.inner=3", ["model.width"]),
    ("+model.width=3", ["model.width=3", "model.width=3"]),
    ("hydra.mode=RUN", ["hydra.mode=RUN"]),
    ("hydra.mode=RUN hydra.run.dir=elsewhere", ["hydra.mode=RUN"]),
    ("hydra.run.dir=elsewhere", ["hydra.run.dir=elsewhere", "output_dir"]),
    ("hydra.sweep.dir=elsewhere", ["hydra.sweep.dir=elsewhere", "output_dir"]),
    ("hydra.output_subdir=.hydra", ["hydra.output_subdir=.hydra", "output_dir"]),
    ("hydra/launcher=joblib", ["hydra/launcher=joblib"]),
    ("hydra/job_logging=default", ["hydra/job_logging=default"]),
    ("--config-name=nope", ["--config-name=nope"]),
    ("--config-dir=nope", ["--config-dir=nope", "sweeps/"]),
    ("--config-path=nope", ["--config-path=nope", "sweeps/"]),
    ("--cfg=nope", ["argument='nope'", "--cfg", "--help"]),
    ("--frobnicate", ["argument=--frobnicate", "--help"]),
    ("--run", ["--run"]),
]

VALUES = [
    ("optimizer.learning_rate=0.1,-1", ["optimizer.learning_rate=-1", "greater than 0"]),
    ("optimizer.learning_rate=inf", ["optimizer.learning_rate=inf", "finite"]),
    ("optimizer.learning_rate=1e-60", ["optimizer.learning_rate=1e-60", "greater than or equal to"]),
    ("optimizer.learning_rate=0.1.2", ["optimizer.learning_rate=0.1.2", "number"]),
    ("optimizer.learning_rate='0,1'", ["optimizer.learning_rate=0", "greater than 0"]),
    ("optimizer.learning_rate={low:1}", ["optimizer.learning_rate.", "bisection"]),
    ("optimizer.learning_rate=1e-6", ["optimizer.learning_rate=1e-06", "schedule.minimum_learning_rate=1e-05"]),
    ("schedule.minimum_learning_rate=1", ["optimizer.learning_rate=0.01", "schedule.minimum_learning_rate=1.0"]),
    ("schedule.warmup_steps=400", ["schedule.warmup_steps=400", "training.steps=400"]),
    ("schedule.warmup_steps=0,500", ["schedule.warmup_steps=500", "training.steps=400"]),
    ("training.steps=1 schedule.warmup_steps=1", ["schedule.warmup_steps=1", "training.steps=1"]),
    ("training.steps=1.5", ["training.steps=1.5", "integer"]),
    ("training.steps=1_000.5", ["training.steps=1000.5", "integer"]),
    ("training.steps=1e300", ["training.steps=", "2147483647"]),
    ("training.steps=ten", ["training.steps=ten", "integer"]),
    ("ladder.steps=ten", ["ladder.steps=ten", "integer"]),
    ("ladder.batch_size=many", ["ladder.batch_size=many", "integer"]),
    ("training.precision=float16", ["training.precision=float16", "bfloat16"]),
    ("model.width=50", ["model.width=50", "model.head_dim=32", "64"]),
    ("model.width=16 model.head_dim=32", ["model.width=16", "model.head_dim=32", "32"]),
    ("model.head_dim=3", ["model.head_dim=3", "even"]),
    ("+sweep=quickstart model.head_dim=10", ["model.width=32", "model.head_dim=10"]),
    ("model.attention=none model.kappa=10", ["model.kappa=10", "model.attention=none"]),
    (
        "model.attention=none model.attention_scale_exponent=1",
        ["model.attention_scale_exponent=1", "model.attention=none"],
    ),
    ("optimizer.decayed_roles=[hair]", ["optimizer.decayed_roles", "hair", "'embedding'"]),
    ("optimizer.decayed_roles=head", ["optimizer.decayed_roles=head", "tuple"]),
    ("training.sequence_length=10000000", ["training.sequence_length=10000000", "208895"]),
    ("training.sequence_length=64,10000000", ["training.sequence_length=10000000", "208895"]),
    ("data.corpus=0123", ["data.corpus=0123", "data.path"]),
    ("data.vocabulary_size=100", ["data.vocabulary_size=100", "256"]),
    ("data.path=books/*.txt", ["data.path=books/*.txt", "data=text"]),
    ("seed=interval(1,2)", ["seed=interval(1,2)", "A,B,C"]),
    ("seed=tag(a,interval(1,2))", ["seed=", "A,B,C"]),
    ("seed=", ["seed=", "integer"]),
    ("seed=range(1000000000)", ["seed=range(1000000000)", "100,000"]),
    ("seed=range(400) optimizer.learning_rate=range(1,401)", ["seed: 400 values", "160,000 runs", "100,000"]),
    ("seed=0,,1", ["seed=0,,1"]),
    ("lanes=many", ["lanes=many", "'sequential', 'vmap' or 'sharded'"]),
    ("lanes=vmap,sequential", ["lanes=vmap,sequential", "one value"]),
    ("lanes=vmap mesh.data=2", ["lanes=vmap", "mesh.data"]),
    ("lanes=sequential mesh.fsdp=2", ["lanes=sequential", "mesh.fsdp"]),
    ("mesh.data=4096", ["mesh=data=4096, fsdp=1", "4096 devices"]),
    ("mesh.data=64 mesh.fsdp=64", ["mesh=data=64, fsdp=64", "4096 devices"]),
    ("mesh.dta=2", ["mesh.dta=2", "mesh.data"]),
    ("dry_run=perhaps", ["dry_run=perhaps", "boolean"]),
    ("dry_run=true,false", ["dry_run=True,False", "one value"]),
    ("progress=loud", ["progress=loud", "'quiet'"]),
    ("figures=svg,pdf", ["figures=svg,pdf", "figures=[svg,pdf]"]),
    ("figures=[gif]", ["figures", "gif", "'svg'"]),
    ("figures={svg:1}", ["figures={svg:1}", "ListConfig"]),
    ("memory_limit=8XB", ["memory_limit=8XB", "8GB"]),
    ("memory_limit=-8GB", ["memory_limit=-8GB", "8GB"]),
    ("memory_limit=8GB,9GB", ["memory_limit=8GB,9GB", "one value"]),
    ("calibrate=soon", ["calibrate=soon", "boolean"]),
    ("tracking.name=wand", ["tracking.name=wand", "files, wandb, or MODULE:NAME"]),
    ("tracking.name=nothing_here:Tracker", ["tracking.name=nothing_here:Tracker", "files, wandb"]),
    ("tracking.name=json:Tracker", ["tracking.name=json:Tracker", "MODULE:NAME"]),
    ("tracking.name=json:__name__", ["tracking.name=json:__name__", "makes a tracker"]),
    ("tracking.name=:Tracker", ["tracking.name=:Tracker", "MODULE:NAME"]),
    ("tracking.name=.here:Tracker", ["tracking.name=.here:Tracker", "MODULE:NAME"]),
    ("tracking.mode=online", ["tracking.mode=online", "wandb login"]),
    ("tracking.mode=sometimes", ["tracking.mode=sometimes", "'offline'"]),
    ("tracking.projct=x", ["tracking.projct=x", "tracking.project"]),
    ("optimizer.weight_decay={search:bisection,low:0.1,high:1.0,tolerance:2.0}", ["optimizer.weight_decay="]),
]

SEARCH = "optimizer.learning_rate="
SEARCHES = [
    (SEARCH + "{search:bisection,low:1.0,high:0.1,tolerance:2.0}", [f"{SEARCH[:-1]}.low=1.0", "high=0.1"]),
    (SEARCH + "{search:bisection,low:0.1,high:0.1,tolerance:2.0}", [f"{SEARCH[:-1]}.low=0.1", "high=0.1"]),
    (SEARCH + "{search:bisection,low:-1,high:0.1,tolerance:2.0}", [f"{SEARCH[:-1]}.low=-1", "greater than"]),
    (SEARCH + "{search:bisection,low:0.1,high:inf,tolerance:2.0}", [f"{SEARCH[:-1]}.high=inf", "finite"]),
    (SEARCH + "{search:bisection,low:0.1,high:1.0,tolerance:1.0}", [f"{SEARCH[:-1]}.tolerance=1.0", "1.25"]),
    (SEARCH + "{search:bisection,low:0.1,high:1.0,tolerance:x}", [f"{SEARCH[:-1]}.tolerance=x", "1.25"]),
    (SEARCH + "{search:bisection,low:0.1,high:1.0}", [f"{SEARCH[:-1]}.tolerance", "tolerance: RATIO"]),
    (SEARCH + "{search:grid,low:0.1,high:1.0,tolerance:2.0}", [f"{SEARCH[:-1]}.search=grid", "bisection"]),
    (SEARCH + "{search:bisection,lo:0.1,high:1.0,tolerance:2.0}", [f"{SEARCH[:-1]}.", "low"]),
    (SEARCH + "{low:0.1,high:1.0,tolerance:2.0}", [f"{SEARCH[:-1]}.search", "bisection"]),
    ("seed={search:bisection,low:1,high:9,tolerance:2.0}", ["seed", "integer"]),
]

GRAMMAR = [
    # what Hydra's parser and OmegaConf say no to
    ("model.width=[1", ["model.width=[1"]),
    ("model.width=(1", ["model.width=(1"]),
    ("optimizer.learning_rate=choice(1,2", ["optimizer.learning_rate=choice(1,2"]),
    ("optimizer.learning_rate=chioce(1,2)", ["optimizer.learning_rate=chioce(1,2)"]),
    ("seed=range(0,3,0)", ["seed=range(0,3,0)"]),
    ("=3", ["argument==3"]),
    ("model..width=3", ["model..width=3"]),
    ("model.width=a=b", ["model.width=a=b"]),
    ("'sweep=quick start'", ["sweep=quick start"]),
    ("\"output_dir='it's'\"", ["output_dir='it's'"]),
    ('output_dir="it\'s here"', ["output_dir=it's here"]),
    ("data.path={a", ["data.path={a"]),
    ("optimizer.learning_rate='${oc.env:NO_SUCH_VARIABLE}'", ["optimizer.learning_rate=", "NO_SUCH_VARIABLE"]),
    ("optimizer.learning_rate='${nothing.here}'", ["optimizer.learning_rate=${nothing.here}"]),
    ("optimizer.learning_rate='${optimizer.learning_rate}'", ["optimizer.learning_rate="]),
    ("optimizer.learning_rate='${'", ["optimizer.learning_rate=${"]),
    ("schedule.warmup_steps='${share:half}'", ["schedule.warmup_steps=${share:half}"]),
    ("schedule.warmup_steps='${shear:0.5}'", ["schedule.warmup_steps=${shear:0.5}"]),
    ("training.batch_size='${times:a,b}'", ["training.batch_size=a", "integer"]),
    ("training.batch_size='${times:2,b}'", ["training.batch_size=${times:2,b}", "number"]),
    ("optimizer.learning_rate=???", ["optimizer.learning_rate=???"]),
    ("seed=???", ["seed=???"]),
]

PLACES = [
    ("output_dir=a,b", ["output_dir=a,b", "one value"]),
    ("output_dir=empty.txt", ["output_dir=empty.txt", "not a folder"]),
    ("output_dir=empty.txt/inside", ["output_dir=empty.txt/inside", "not a folder"]),
    ("output_dir=/dev/null/x", ["output_dir=/dev/null/x", "not a folder"]),
    ("output_dir=/proc/x", ["output_dir=/proc/x", "cannot be written"]),
    ("output_dir=foreign", ["output_dir=foreign", "not empty"]),
    ("output_dir=.", ["output_dir=.", "not empty"]),
    (f"output_dir={'x' * 300}", ["output_dir=xxx", "Name another"]),
    ("reuse_from=nowhere", ["reuse_from=nowhere", "results folder"]),
    ("reuse_from=foreign", ["reuse_from=foreign", "results folder"]),
    ("reuse_from=empty.txt", ["reuse_from=empty.txt", "results folder"]),
]

SLURM = [
    ("launcher=slrum", ["launcher=slrum", "'local' or 'slurm'"]),
    ("launcher=local,slurm", ["launcher=local,slurm", "one value"]),
    ("slurm.array=3", ["slurm.array=3", "launcher=slurm"]),
    ("slurm=whole_nodes", ["slurm=", "launcher=slurm"]),
    ("launcher=slurm slurm=nowhere", ["slurm=nowhere", "whole_nodes"]),
    ("launcher=slurm slurm.partion=gpu", ["slurm.partion=gpu", "slurm.partition"]),
    ("launcher=slurm slurm.partition=a,b", ["slurm.partition=a,b", "one value"]),
    ("launcher=slurm slurm.partition=\"'a\tb'\"", ["slurm.partition=a", "cannot be printed"]),
    ("launcher=slurm slurm.gpus_per_node=many", ["slurm.gpus_per_node=many", "a100:8"]),
    ("launcher=slurm slurm.gpus_per_node=0", ["slurm.gpus_per_node=0", "a100:8"]),
    ("launcher=slurm slurm.mem=lots", ["slurm.mem=lots", "8GB"]),
    ("launcher=slurm slurm.signal_delay_s=3600", ["slurm.signal_delay_s=3600", "slurm.timeout_min=60"]),
    ("launcher=slurm +slurm.additional.array=0-9", ["slurm.additional.array=0-9", "slurm.array"]),
    ("launcher=slurm +slurm.additional.output=x", ["slurm.additional.output=x", "Leave it out"]),
    ("launcher=slurm +slurm.additional.Mail_Type=ALL", ["slurm.additional.Mail_Type=ALL", "mail-type"]),
    ("launcher=slurm +slurm.additional.reservation=[a]", ["slurm.additional.reservation=['a']", "one line"]),
    ("launcher=slurm output_dir=50%", ["output_dir=", "without %"]),
]

SURROUNDINGS = {"empty.txt": "", "foreign/thesis.tex": "precious"}
"""A file and a folder that are not ours, to point commands at."""


def sweep_json(**other: Any) -> str:
    """The manifest of a sweep `s` that plans nothing, with something else in places."""
    usual = {"sweep": "s", "sweep_id": "a", "settings": {}, "runs": [], "scales": {}, "commands": []}
    return json.dumps({"schema_version": 1, **usual, **other})


MANIFESTS = {
    # sweep.json of the output folder -> what must be named
    "is no JSON": ("{", ["sweep.json", "not valid JSON"]),
    "is a list": ("[]", ["sweep.json", "JSON object"]),
    "is of another version": ('{"schema_version": 2}', ["sweep.json", "schema_version 2"]),
    "has no version": ("{}", ["sweep.json", "schema_version"]),
    "is empty": ("", ["sweep.json", "not valid JSON"]),
    "is no text": (b"\xff\xfe\x00", ["sweep.json", "not valid JSON"]),
    "holds only its version": ('{"schema_version": 1}', ["sweep.json", "sweep"]),
    "names a number": (sweep_json(sweep=3), ["sweep.json", "`sweep`"]),
    "has settings of no kind": (sweep_json(settings=3), ["sweep.json", "`settings`"]),
    "has settings that are no lists": (sweep_json(settings={"seed": 3}), ["sweep.json", "`settings.seed`"]),
    "has runs of no kind": (sweep_json(runs=7), ["sweep.json", "`runs`"]),
    "has commands that are words": (sweep_json(commands=["a"]), ["sweep.json", "`commands.0`"]),
    "is of another sweep": (sweep_json(sweep="other"), ["output_dir=results/s", "'other'"]),
}


def run_cases() -> list[Case]:
    """All of them."""
    manifests = {
        f"its sweep.json {about}": ({"results/s/sweep.json": content}, named)
        for about, (content, named) in MANIFESTS.items()
    }
    locked = [
        Case("run", ("output_dir=locked/s",), ("output_dir=locked/s", "cannot be written"), {"locked": None},
             locked={"locked": 0o555}),
        Case("run", ("output_dir=locked",), ("output_dir=locked", "cannot be written"), {"locked": None},
             locked={"locked": 0o555}),
    ]  # fmt: skip
    tables = [CHOICES, VALUES, SEARCHES, GRAMMAR, PLACES, SLURM]
    return [
        *(case for table in tables for case in cases("run", table, SURROUNDINGS)),
        *files_cases("run", "output_dir=results/s dry_run=true", manifests),
        Case("run", ("memory_limit=1kB",), ("memory_limit=1 kB", "scale", "raise memory_limit")),
        Case("run", ("model.width=2097152", "memory_limit=64GB"), ("memory_limit=64 GB", "raise memory_limit")),
        *locked,
    ]
