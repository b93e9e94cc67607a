"""Distil the KV caches of several teachers into one student, and measure whether it helps.

A *study* (one YAML file) names *arms*; each arm makes a model by one recipe, once per seed; all models answer the same questions.

    config ──► data ──► teachers' KV ──► maps ──► training of each arm ──► answers ──► scores ──► comparison ──► report
               data       kv, models     align    fuse, distill, latent,   evaluate   evaluate       stats       report
                                                  training

`mtkv.stages` has the function behind each rule of the workflow, `mtkv.ops` the commands around a study (plan, doctor, status). A package
imports only from those below it (`.importlinter`). docs/method.md has the mathematics, docs/glossary.md the words.
"""

__version__ = "0.1.0"
