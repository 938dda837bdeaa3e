package inherit_test

import (
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/internal/inherit"
)

type backoff struct {
	Base, Max time.Duration
}

type hedge struct {
	Delay   time.Duration
	Backoff *backoff
}

type Common struct {
	Name string
}

type config struct {
	Common
	Timeout   time.Duration
	Attempts  int
	Ratio     float64
	Disabled  bool
	Backoff   backoff
	Hedge     *hedge
	Methods   []string
	Headers   map[string]string
	Now       func() time.Time
	Any       any
	Transport *http.Transport
	Since     time.Time
	Addr      netip.Addr
	Count     *int
	Pair      [2]int
}

func full() config {
	count := 7
	return config{
		Common: Common{Name: "parent"}, Timeout: time.Second, Attempts: 3, Ratio: 0.5, Disabled: true,
		Backoff: backoff{Base: 1, Max: 2}, Hedge: &hedge{Delay: 3, Backoff: &backoff{Base: 4, Max: 5}},
		Methods: []string{"GET"}, Headers: map[string]string{"a": "b"}, Any: 5,
		Transport: &http.Transport{MaxIdleConns: 9}, Since: time.Unix(1, 0),
		Addr: netip.MustParseAddr("192.0.2.1"), Count: &count, Pair: [2]int{1, 2},
	}
}

func TestEmptyChildIsTheParent(t *testing.T) {
	require.Equal(t, full(), inherit.Of(config{}, full()))
}

func TestEmptyParentLeavesTheChild(t *testing.T) {
	require.Equal(t, full(), inherit.Of(full(), config{}))
}

func TestEachFieldIsInheritedForItself(t *testing.T) {
	parent := full()
	one, transport := 1, &http.Transport{}
	tests := []struct {
		name        string
		child, want func(*config)
	}{
		{"number", func(c *config) { c.Attempts = -1 }, nil},
		{"bool", func(c *config) { c.Disabled = true }, nil},
		{"duration", func(c *config) { c.Timeout = -1 }, nil},
		{"embedded", func(c *config) { c.Name = "child" }, nil},
		{"struct's field", func(c *config) { c.Backoff.Max = 20 }, nil},
		{
			"pointed to struct's field",
			func(c *config) { c.Hedge = &hedge{Delay: 30} },
			func(c *config) { c.Hedge = &hedge{Delay: 30, Backoff: c.Hedge.Backoff} },
		},
		{
			"pointer inside a pointed to struct",
			func(c *config) { c.Hedge = &hedge{Backoff: &backoff{Max: 50}} },
			func(c *config) { c.Hedge = &hedge{Delay: 3, Backoff: &backoff{Base: 4, Max: 50}} },
		},
		{"slice, whole", func(c *config) { c.Methods = []string{"PUT", "GET"} }, nil},
		{"empty slice, whole", func(c *config) { c.Methods = []string{} }, nil},
		{"map, whole", func(c *config) { c.Headers = map[string]string{"c": "d"} }, nil},
		{"empty map, whole", func(c *config) { c.Headers = map[string]string{} }, nil},
		{"interface, whole", func(c *config) { c.Any = "child" }, nil},
		{"interface with a zero value", func(c *config) { c.Any = 0 }, nil},
		{"struct with unexported fields, whole", func(c *config) { c.Since = time.Unix(2, 0) }, nil},
		{"pointer to a struct with unexported fields, whole", func(c *config) { c.Transport = transport }, nil},
		{"pointer to a number, whole", func(c *config) { c.Count = &one }, nil},
		{"array, whole", func(c *config) { c.Pair = [2]int{0, 9} }, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var child config
			tt.child(&child)
			want := parent
			if tt.want == nil {
				tt.want = tt.child
			}
			tt.want(&want)
			got := inherit.Of(child, parent)
			require.Equal(t, want, got)
			if child.Transport != nil {
				require.Same(t, child.Transport, got.Transport)
			}
		})
	}
}

func TestFuncIsTakenIfNil(t *testing.T) {
	parentsTime, childsTime := time.Unix(1, 0), time.Unix(2, 0)
	parent := config{Now: func() time.Time { return parentsTime }}
	child := config{Now: func() time.Time { return childsTime }}
	require.Equal(t, parentsTime, inherit.Of(config{}, parent).Now())
	require.Equal(t, childsTime, inherit.Of(child, parent).Now())
}

func TestInputsAreNotWrittenTo(t *testing.T) {
	child, parent := config{Hedge: &hedge{Delay: 30}, Backoff: backoff{Max: 20}}, full()
	childsHedge := child.Hedge
	got := inherit.Of(child, parent)
	require.Equal(t, config{Hedge: &hedge{Delay: 30}, Backoff: backoff{Max: 20}}, child)
	require.Equal(t, full(), parent)

	got.Hedge.Delay = 99
	got.Backoff.Base = 99
	require.Equal(t, time.Duration(30), childsHedge.Delay)
	require.Equal(t, full(), parent)
}

func TestWhatIsTakenWholeIsShared(t *testing.T) {
	parent := full()
	got := inherit.Of(config{}, parent)
	require.Same(t, parent.Hedge, got.Hedge)
	require.Same(t, parent.Transport, got.Transport)
	got.Headers["shared"] = "yes"
	require.Equal(t, "yes", parent.Headers["shared"])
}

func TestChainOfThree(t *testing.T) {
	route := config{Attempts: 1}
	service := config{Attempts: 2, Timeout: time.Minute, Hedge: &hedge{Delay: 8}}
	got := inherit.Of(inherit.Of(route, service), full())
	require.Equal(t, 1, got.Attempts)
	require.Equal(t, time.Minute, got.Timeout)
	require.Equal(t, &hedge{Delay: 8, Backoff: &backoff{Base: 4, Max: 5}}, got.Hedge)
	require.Equal(t, "parent", got.Name)
}

func TestOfOtherThanStructs(t *testing.T) {
	require.Equal(t, 3, inherit.Of(0, 3))
	require.Equal(t, 2, inherit.Of(2, 3))
	require.Equal(t, &backoff{1, 2}, inherit.Of(&backoff{Base: 1}, &backoff{Base: 5, Max: 2}))
	require.Equal(t, &backoff{1, 2}, inherit.Of(nil, &backoff{1, 2}))
	require.Nil(t, inherit.Of[any](nil, nil))
	require.Equal(t, 4, inherit.Of[any](nil, 4))
}

func TestOrMeansTheDefaultByZeroAndOffByWhatIsNegative(t *testing.T) {
	require.Equal(t, 3, inherit.Or(0, 3))
	require.Equal(t, 7, inherit.Or(7, 3))
	require.Zero(t, inherit.Or(-1, 3))
	require.Equal(t, 0.5, inherit.Or(0, 0.5))
	require.Equal(t, time.Minute, inherit.Or(0, time.Minute))
	require.Zero(t, inherit.Or(-time.Second, time.Minute))
}
