package retry

import (
	"math"
	"sync/atomic"

	"github.com/backstay/backstay/outcome"
)

// active is a ConcurrencyBudget's account.
type active struct {
	ratio float64
	least int64

	_     [64]byte // calls is written with every call, what is above is read
	calls atomic.Int64
	extra atomic.Int64
}

func (a *active) init(c *BudgetConfig) { a.ratio, a.least = c.Ratio, int64(c.MinConcurrency) }

// limit is how many extra attempts there may be at a time.
func (a *active) limit() int64 {
	return max(a.least, int64(a.ratio*float64(a.calls.Load())))
}

func (a *active) left() int { return int(max(a.limit()-a.extra.Load(), 0)) }

func (a *active) withdraw() bool {
	limit := a.limit()
	for {
		n := a.extra.Load()
		if n >= limit {
			return false
		}
		if a.extra.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// token is one of a TokenBudget's, which are counted in thousandths as gRFC A6
// has it.
const token = 1000

// tokens is a TokenBudget's account.
type tokens struct {
	most, gain int64

	_    [64]byte // have changes with every failure, what is above does not
	have atomic.Int64
}

func (t *tokens) init(c *BudgetConfig) {
	t.most, t.gain = int64(c.MaxTokens)*token, int64(math.Round(c.Ratio*token))
	t.have.Store(t.most)
}

func (t *tokens) judge(o outcome.Outcome) {
	switch {
	case o.Class == outcome.Success:
		t.succeeded()
	case o.Class == outcome.Throttled || o.Class == outcome.Failure && o.Retry != outcome.Never:
		t.failed()
	}
}

// succeeded writes nothing while all tokens are there, as they mostly are.
func (t *tokens) succeeded() {
	for n := t.have.Load(); n < t.most; n = t.have.Load() {
		if t.have.CompareAndSwap(n, min(n+t.gain, t.most)) {
			return
		}
	}
}

func (t *tokens) failed() {
	for n := t.have.Load(); n > 0; n = t.have.Load() {
		if t.have.CompareAndSwap(n, max(n-token, 0)) {
			return
		}
	}
}

// left returns how many failures it takes until half of the tokens are left.
func (t *tokens) left() int {
	return int(max(t.have.Load()-t.most/2+token-1, 0) / token)
}
