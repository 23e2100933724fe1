"""The equations of Step Cache's two methods, written plainly: what the tests hold the pack's beside."""

import torch

# TeaCache's authors' figures, here as numpy.polyfit gives them: the highest power first.
POLYNOMIALS = {
    "2B": [-3.10658903e+01, 2.54732368e+01, -5.92380459e+00, 1.75769064e+00, -3.61568434e-03],
    "5B": [-1.53880483e+03, 8.43202495e+02, -1.34363087e+02, 7.97131516e+00, -5.23162339e-02],
    "1.5": [2.50210439e+02, -1.65061612e+02, 3.57804877e+01, -7.81551492e-01, 3.58559703e-02],
    "1.5 I2V": [1.22842302e+02, -1.04088754e+02, 2.62981677e+01, -3.06009921e-01, 3.71213220e-02],
}


class Reference:
    """run_block= of a core's network for a row of calls of one condition, each of which is a step.

    first_block, threshold: which method, and its limit. rescale: of a relative change. measure(x, vec): TeaCache's.
    computed: the numbers of the calls that may not be skipped. log: for each call, whether it was reused.
    """

    def __init__(self, blocks, threshold, first_block, rescale=None, measure=None, computed=()):
        self.last, self.threshold, self.first_block = blocks - 1, threshold, first_block
        self.rescale, self.measure, self.computed = rescale, measure, computed
        self.log, self.compared, self.total = [], None, 0.0

    def judge(self, what):
        change = torch.inf
        if self.compared is not None:
            change = float(torch.mean(abs(what - self.compared)) / torch.mean(abs(self.compared)))
        if not self.first_block and self.compared is not None:
            self.total += float(self.rescale(change))
            self.compared, change = what, self.total
        reuse = change <= self.threshold and len(self.log) not in self.computed
        self.log.append(reuse)
        if not reuse:
            self.compared, self.total = what, 0.0

    def __call__(self, i, run, x, context, vec):
        if i == 0:
            self.begin = x, context
            if self.first_block:
                self.begin = run(x, context, vec)
            self.judge(self.begin[0] - x if self.first_block else self.measure(x, vec))
            if self.log[-1]:
                return x if not self.first_block else self.begin[0], context if not self.first_block else self.begin[1]
            return self.begin if self.first_block else run(x, context, vec)
        if not self.log[-1]:
            x, context = run(x, context, vec)
        if i == self.last:
            if self.log[-1]:
                return x + self.grown[0], context + self.grown[1]
            self.grown = x - self.begin[0], context - self.begin[1]
        return x, context
