package retry

import (
	"encoding/json"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Each kind's waits fill the whole of its range, at the cap too, and nothing
// beyond.
func TestWaitsOfEachKindFillTheirRange(t *testing.T) {
	const base, most = 100 * time.Millisecond, time.Second
	for _, test := range []struct {
		kind     BackoffKind
		n        int
		from, to time.Duration
	}{
		{0, 1, 0, base},
		{FullJitter, 1, 0, base},
		{FullJitter, 3, 0, 4 * base},
		{FullJitter, 9, 0, most},
		{EqualJitter, 1, base / 2, base},
		{EqualJitter, 3, 2 * base, 4 * base},
		{EqualJitter, 9, most / 2, most},
		{DecorrelatedJitter, 1, base, 3 * base},
		{DecorrelatedJitter, 2, base, 9 * base},
		{DecorrelatedJitter, 30, base, most},
		{Constant, 1, base, base},
		{Constant, 9, base, base},
		{Linear, 1, base, base},
		{Linear, 4, 4 * base, 4 * base},
		{Linear, 11, most, most},
	} {
		b := resolved(t, Backoff{Kind: test.kind, Base: base, Max: most})
		var least, longest time.Duration = math.MaxInt64, 0
		for range 5000 {
			var p pace
			d, more := p.next(b, test.n, false)
			require.True(t, more)
			least, longest = min(least, d), max(longest, d)
		}
		room := (test.to - test.from) / 10
		if test.kind == DecorrelatedJitter {
			room *= 3 // its ends are reached by way of others
		}
		require.GreaterOrEqual(t, least, max(test.from, 1), "%v, repetition %d", test.kind, test.n)
		require.LessOrEqual(t, longest, test.to, "%v, repetition %d", test.kind, test.n)
		require.LessOrEqual(t, least, test.from+room, "%v, repetition %d", test.kind, test.n)
		require.GreaterOrEqual(t, longest, test.to-room, "%v, repetition %d", test.kind, test.n)
	}
}

func TestThrottledWaitsHaveTheirOwnBaseInEachKind(t *testing.T) {
	for kind, from := range map[BackoffKind]time.Duration{
		EqualJitter: 500 * time.Millisecond, DecorrelatedJitter: time.Second, Constant: time.Second, Linear: time.Second,
	} {
		b := resolved(t, Backoff{Kind: kind, Base: time.Millisecond})
		for range 100 {
			var p pace
			d, _ := p.next(b, 1, true)
			require.GreaterOrEqual(t, d, from, kind)
			d, _ = p.next(b, 1, false)
			require.LessOrEqual(t, d, 3*time.Millisecond, kind)
		}
	}
}

// The bounds are those of a wait, not of a nominal one before the jitter, however
// many repetitions there are and however large they are.
func TestNoKindOverflowsOrLeavesItsBounds(t *testing.T) {
	for i := range backoffKinds() {
		kind := BackoffKind(i + 1)
		for _, b := range []Backoff{
			{},
			{Base: 1, Max: 1, ThrottledBase: 1},
			{Base: 1, Max: math.MaxInt64},
			{Base: math.MaxInt64, Max: math.MaxInt64},
			{Base: 3, Max: 7, ThrottledBase: 5},
			{Base: 50 * time.Millisecond, Max: 50 * time.Millisecond},
		} {
			b.Kind = kind
			r := resolved(t, b)
			var p pace
			for n := 1; n <= 10_000; n++ {
				d, more := p.next(r, n, n%3 == 0)
				if !more || d <= 0 || d > r.Max {
					t.Fatalf("%v from %v to %v: repetition %d waits %v, %v", kind, r.Base, r.Max, n, d, more)
				}
			}
		}
	}
}

func TestGeneratorsBeginAnewAfterReset(t *testing.T) {
	for _, kind := range []BackoffKind{DecorrelatedJitter, Linear} {
		b := resolved(t, Backoff{Kind: kind})
		g := b.generator(b.Base)
		for range 100 {
			g.NextBackOff()
		}
		g.Reset()
		require.LessOrEqual(t, g.NextBackOff(), 3*b.Base, kind)
	}
}

func TestKindsHaveTextNames(t *testing.T) {
	for i, name := range []string{"full", "equal", "decorrelated", "constant", "linear"} {
		kind := BackoffKind(i + 1)
		require.Equal(t, name, kind.String())
		text, err := json.Marshal(Backoff{Kind: kind})
		require.NoError(t, err)
		require.JSONEq(t, `{"kind":"`+name+`"}`, string(text))
		var b Backoff
		require.NoError(t, json.Unmarshal(text, &b))
		require.Equal(t, kind, b.Kind)
	}
	for i, name := range []string{"window", "concurrency", "tokens"} {
		kind := BudgetKind(i + 1)
		require.Equal(t, name, kind.String())
		text, err := json.Marshal(BudgetConfig{Kind: kind})
		require.NoError(t, err)
		require.JSONEq(t, `{"kind":"`+name+`"}`, string(text))
		var c BudgetConfig
		require.NoError(t, json.Unmarshal(text, &c))
		require.Equal(t, kind, c.Kind)
	}

	var b Backoff
	require.ErrorContains(t, json.Unmarshal([]byte(`{"kind":"exponential"}`), &b),
		`retry: Backoff.Kind is "exponential", want "full", "equal", "decorrelated", "constant" or "linear"`)
	require.Zero(t, b)
	var c BudgetConfig
	require.ErrorContains(t, json.Unmarshal([]byte(`{"kind":"none"}`), &c),
		`retry: BudgetConfig.Kind is "none", want "window", "concurrency" or "tokens"`)
	require.Zero(t, c)
	_, err := json.Marshal(Backoff{Kind: 6})
	require.ErrorContains(t, err, "retry: Backoff.Kind is 6")
	require.Equal(t, "6", BackoffKind(6).String())
	require.NoError(t, b.Kind.UnmarshalText(nil), "it is what MarshalText makes of one that was left out")
	require.Zero(t, b.Kind)
	require.Empty(t, b.Kind.String())
}
