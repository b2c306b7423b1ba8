"""RINCE, contrastive learning with ranked positives: the parts that other projects import.

rince.losses: the objective; rince.networks: encoders, memory bank, momentum model; rince.evaluation: retrieval, OOD.
The scripts, data sets and recipes are not in this package: they run from the project's own folder.
"""
