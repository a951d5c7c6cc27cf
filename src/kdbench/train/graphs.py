from kdbench.train.steps import Steps


def steps_on(runtime, batches, teachers):
    return Steps(batches, teachers)
