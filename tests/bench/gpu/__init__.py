"""What a GPU says: memory and speed of real training steps, beside what was predicted.

`make bench-gpu` works through five parts. Each is a list of runs; each run is one JSON line in
`PART.jsonl`, written as soon as it is there, so that a part that was stopped goes on where it was.

table        a model of Llama-2-7B's shapes under the lesson's methods
predictions  settings drawn over five architectures, 0.1B to 13B
rank         what rank 64 costs beside rank 8
training     the course's own runs, and chapters 05 and 08 through papermill
speed        the course's training cell beside TRL's defaults and faster settings; generation

Measuring needs the packages of `loralab` without the autograder, jupytext among them; predicting
(`--predict`) needs no GPU and is done afterwards, wherever the course is installed.
"""
