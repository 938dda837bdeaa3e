package retry

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/backstay/backstay/internal/inherit"
	"github.com/backstay/backstay/outcome"
)

// BudgetKind is what a budget counts. Its text, in JSON too, is given with each.
type BudgetKind uint8

// The kinds of budgets.
const (
	// WindowBudget, "window", allows a share of the calls of some seconds, and
	// some extra attempts per second (Finagle's RetryBudget): over any Window
	// that ends with an extra attempt, these are at most Ratio times the calls
	// plus PerSecond times the window's seconds.
	WindowBudget BudgetKind = iota + 1
	// ConcurrencyBudget, "concurrency", allows so many extra attempts at a time
	// (Envoy's retry budget): fewer than Ratio times the calls under way, or than
	// MinConcurrency if that is more. Those that wait for their turn count. What
	// it allows follows the load at once, but it bounds no rate: attempts that
	// fail fast may be many.
	ConcurrencyBudget
	// TokenBudget, "tokens", allows extra attempts while enough attempts succeed
	// (gRPC's retryThrottling, gRFC A6): it begins with MaxTokens; a failed
	// attempt takes one, a success gives Ratio back, and with half of them or
	// fewer there is no extra attempt. It needs no clock, and recovers only by
	// calls that succeed at first try.
	TokenBudget
)

func budgetKinds() kinds { return kinds{"window", "concurrency", "tokens"} }

// String returns the kind's text; "" if it was left out.
func (k BudgetKind) String() string { return budgetKinds().name(uint8(k)) }

// MarshalText returns the kind's text.
func (k BudgetKind) MarshalText() ([]byte, error) {
	return budgetKinds().marshal("BudgetConfig.Kind", uint8(k))
}

// UnmarshalText sets the kind to the one with this text.
func (k *BudgetKind) UnmarshalText(text []byte) error {
	i, err := budgetKinds().unmarshal("BudgetConfig.Kind", text)
	if err == nil {
		*k = BudgetKind(i)
	}
	return err
}

// BudgetConfig says how many extra attempts calls may cause. The zero value is
// the default in every field. Fields of another Kind mean nothing.
type BudgetConfig struct {
	// Kind is what the budget counts.
	// Default: WindowBudget, "window".
	Kind BudgetKind `json:"kind,omitempty"`
	// Ratio is how many extra attempts each call of the window, or each that is
	// under way, allows, or what share of a token a success gives back; from a
	// millionth (of a token: a thousandth) up to 10. Negative turns the budget
	// off: there is no limit.
	// Default: 0.2; of a TokenBudget 0.1.
	Ratio float64 `json:"ratio,omitempty"`
	// PerSecond is how many extra attempts each second of a WindowBudget's window
	// allows besides, so that a service with few calls can be tried again too.
	// Negative is none.
	// Default: 10.
	PerSecond int `json:"perSecond,omitempty"`
	// Window is how far back a WindowBudget's calls and extra attempts count.
	// Default: 10s.
	Window time.Duration `json:"window,omitempty"`
	// MinConcurrency is how many extra attempts at a time a ConcurrencyBudget
	// allows however few calls are under way. Negative is none.
	// Default: 3.
	MinConcurrency int `json:"minConcurrency,omitempty"`
	// MaxTokens is what a TokenBudget begins with and never exceeds, from 3 (with
	// fewer there would be no extra attempt at all) to 1,000.
	// Default: 10.
	MaxTokens int `json:"maxTokens,omitempty"`
}

// filled returns c with its defaults. A budget that is off keeps its negative
// ratio.
func (c BudgetConfig) filled() BudgetConfig {
	c.Kind = cmp.Or(c.Kind, WindowBudget)
	ratio := 0.2
	if c.Kind == TokenBudget {
		ratio = 0.1
	}
	c.Ratio = cmp.Or(c.Ratio, ratio)
	c.PerSecond = inherit.Or(c.PerSecond, 10)
	c.Window = cmp.Or(c.Window, 10*time.Second)
	c.MinConcurrency = inherit.Or(c.MinConcurrency, 3)
	c.MaxTokens = cmp.Or(c.MaxTokens, 10)
	return c
}

// validate joins all that is wrong with c, in which the defaults are filled in.
func (c *BudgetConfig) validate() error {
	var errs []error
	check := func(ok bool, field string, value any, want string) {
		if !ok {
			errs = append(errs, fmt.Errorf("retry: BudgetConfig.%s is %v, want %s", field, value, want))
		}
	}
	least := 1. / float64(unit)
	if c.Kind == TokenBudget {
		least = 1. / float64(token)
	}
	check(budgetKinds().valid(uint8(c.Kind)), "Kind", c.Kind, budgetKinds().want())
	check(c.Ratio <= 10, "Ratio", c.Ratio, "<= 10") // nor is what is not a number
	check(c.Ratio < 0 || !(c.Ratio < least), "Ratio", c.Ratio, fmt.Sprintf(">= %v, or negative for no budget", least))
	check(!math.IsInf(c.Ratio, -1), "Ratio", c.Ratio, "a number")
	check(c.PerSecond <= 1e6, "PerSecond", c.PerSecond, "<= 1000000")
	check(c.Window >= parts && c.Window <= forever, "Window", c.Window, fmt.Sprintf("from %dns to %v", parts, forever))
	check(c.MinConcurrency <= 1e6, "MinConcurrency", c.MinConcurrency, "<= 1000000")
	check(c.MaxTokens >= 3 && c.MaxTokens <= 1000, "MaxTokens", c.MaxTokens, "from 3 to 1000")
	return errors.Join(errs...)
}

const forever = 1000 * time.Hour

// Budget bounds the extra attempts of retries and hedges, so that a service that
// fails is not asked for several times the load that it cannot bear. One budget
// is for all that call the same service.
//
// Whoever makes calls tells it of each: Deposit when it begins and Finish when it
// is over; Judge for every attempt's outcome; Withdraw before an extra attempt,
// before its wait too, and Return when that attempt has ended or was not made
// after all. Which of these count depends on the kind; what a WindowBudget has
// given is spent, returned or not.
//
// All methods may be called concurrently; none allocates.
type Budget struct {
	kind   BudgetKind // 0 if it is off
	window window
	active active
	tokens tokens
}

// NewBudget returns a budget, full at first. Its errors join all that is wrong
// with cfg, which may be nil.
func NewBudget(cfg *BudgetConfig) (*Budget, error) {
	var c BudgetConfig
	if cfg != nil {
		c = *cfg
	}
	c = c.filled()
	if err := c.validate(); err != nil {
		return nil, err
	}
	return newBudget(c), nil
}

func newBudget(c BudgetConfig) *Budget {
	b := new(Budget)
	if c.Ratio < 0 {
		return b
	}
	switch b.kind = c.Kind; b.kind {
	case WindowBudget:
		b.window.init(&c)
	case ConcurrencyBudget:
		b.active.init(&c)
	case TokenBudget:
		b.tokens.init(&c)
	}
	return b
}

// Deposit counts a call. It is made once per call, with its first attempt. A
// zero now is the present.
func (b *Budget) Deposit(now time.Time) {
	switch b.kind {
	case WindowBudget:
		b.window.deposit(now)
	case ConcurrencyBudget:
		b.active.calls.Add(1)
	case TokenBudget: // which counts answers
	}
}

// Finish tells that a call is over: for retries it is when its caller gets its
// result, over HTTP the response's headers. It is made once for each Deposit.
func (b *Budget) Finish() {
	if b.kind == ConcurrencyBudget {
		b.active.calls.Add(-1)
	}
}

// Withdraw takes one extra attempt, and reports whether there was one left. A
// zero now is the present.
func (b *Budget) Withdraw(now time.Time) bool {
	switch b.kind {
	case WindowBudget:
		return b.window.withdraw(now)
	case ConcurrencyBudget:
		return b.active.withdraw()
	case TokenBudget:
		return b.tokens.left() > 0
	}
	return true
}

// Return tells that an extra attempt is over. It is made once for each Withdraw
// that returned true.
func (b *Budget) Return() {
	if b.kind == ConcurrencyBudget {
		b.active.extra.Add(-1)
	}
}

// Judge tells how an attempt ended: well if its class is Success, badly if it
// might be tried again or the server asks for less load. Other outcomes, such as
// a cancel of the caller's, say nothing.
func (b *Budget) Judge(o outcome.Outcome) {
	if b.kind == TokenBudget {
		b.tokens.judge(o)
	}
}

// Balance returns how many extra attempts are left; of a TokenBudget how many
// failures it bears until it has none left; of a budget that is off,
// math.MaxInt. Withdraw returns true if and only if it is not 0. A zero now is
// the present.
func (b *Budget) Balance(now time.Time) int {
	switch b.kind {
	case WindowBudget:
		return b.window.balance(now)
	case ConcurrencyBudget:
		return b.active.left()
	case TokenBudget:
		return b.tokens.left()
	}
	return math.MaxInt
}
