"""Search of settings by validation accuracy: spaces, trials and results, on Optuna's samplers, pruners and storages."""
