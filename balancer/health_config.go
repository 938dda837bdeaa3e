package balancer

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/backstay/backstay/internal/inherit"
)

// HealthConfig says how nodes are checked while nobody calls them. One of Path, TCP
// and Check says what a check is; without any there are none.
//
// A node that joins counts as well until its first check, which is made at once and
// decides alone; see InitialUnhealthy. Later it takes several in a row. Nodes that
// are not healthy get no calls, except in panic mode (Config.PanicThreshold). A
// healthy answer to a check that began while the node was ejected as an outlier ends
// the ejection; one by [Balancer.Eject] stays. A node that is healthy again has its
// slow start.
//
// Checks are no calls: they count in no estimate, in no breaker and not as load.
type HealthConfig struct {
	// Path makes checks of HTTP requests to this path, which may have a query, over
	// the node's own connections: those of the first layer that [Balancer.Layer] has
	// made; before there is one, and where it cannot tell the nodes apart, nothing is
	// checked. Redirects are not followed: they are failures. Default: none.
	Path string `json:"path,omitempty"`
	// TCP is On to make checks of connections to the node, closed at once. They are
	// made as those of the calls are: by the dialer of the first layer over an
	// *http.Transport, and where there is none by Config.Dial. Default: Off.
	TCP Switch `json:"tcp,omitempty"`
	// Check makes checks of calls to it: a nil error is a node that is well. It must
	// be safe for concurrent use and end when ctx does: Close waits for it.
	// Default: none.
	Check func(ctx context.Context, n *Node) error `json:"-"`

	// Method is the HTTP request's. Default: GET.
	Method string `json:"method,omitempty"`
	// Scheme is "http" or "https". Default: what the first call uses, and until there
	// is one https for the port 443 and http for others.
	Scheme string `json:"scheme,omitempty"`
	// Host is the HTTP request's Host header; the name in the certificate is the
	// service's all the same. Default: the service's name.
	Host string `json:"host,omitempty"`
	// Header is what else the HTTP request bears. Default: nothing.
	Header map[string]string `json:"header,omitempty"`
	// Status lists the HTTP answers of a node that is well. Default: 200-299.
	Status []StatusRange `json:"status,omitempty"`
	// Body is what the answer's first 4 KiB must contain. Default: anything.
	Body string `json:"body,omitempty"`
	// Port is where to check, if that is not where the calls go. HTTP checks then
	// have a connection of their own each time. Default: the node's.
	Port int `json:"port,omitempty"`

	// Interval is the time between two checks of a healthy node. Default: 10s.
	Interval time.Duration `json:"interval,omitempty"`
	// UnhealthyInterval is the time between two checks of one that is not.
	// Default: half of Interval.
	UnhealthyInterval time.Duration `json:"unhealthyInterval,omitempty"`
	// Timeout is how long a check may take. A Check that goes on nevertheless has
	// failed; its node is checked again when it has returned. Default: 1s.
	Timeout time.Duration `json:"timeout,omitempty"`
	// Unhealthy is how many failures in a row make a node unhealthy. Default: 3.
	Unhealthy int `json:"unhealthy,omitempty"`
	// Healthy is how many successes in a row make it healthy again. Default: 2.
	Healthy int `json:"healthy,omitempty"`
	// Jitter is the share, up to 1, by which each interval varies at random to
	// either side. Negative: none. Default: 0.2.
	Jitter float64 `json:"jitter,omitempty"`
	// InitialUnhealthy is On to take a node that joins for unhealthy until its first
	// check. Default: Off.
	InitialUnhealthy Switch `json:"initialUnhealthy,omitempty"`
	// Concurrency is how many checks may be under way at a time. Default: 64.
	Concurrency int `json:"concurrency,omitempty"`
}

// Switch is a setting that is on, off, or inherited; in JSON true, false, or left
// out.
type Switch = inherit.Switch

// What a [Switch] can be.
const (
	// Inherit leaves the choice to the next wider scope, where it ends as Off.
	Inherit = inherit.Inherit
	// On switches on.
	On = inherit.On
	// Off switches off what a wider scope has switched on.
	Off = inherit.Off
)

// enabled reports whether there are checks at all.
func (c *HealthConfig) enabled() bool { return c.Path != "" || c.TCP == On || c.Check != nil }

func (c HealthConfig) withDefaults() HealthConfig {
	if c.Method == "" {
		c.Method = "GET"
	}
	if len(c.Status) == 0 {
		c.Status = []StatusRange{{200, 299}}
	}
	c.Interval = inherit.Or(c.Interval, 10*time.Second)
	c.UnhealthyInterval = inherit.Or(c.UnhealthyInterval, c.Interval/2)
	c.Timeout = inherit.Or(c.Timeout, time.Second)
	c.Unhealthy = inherit.Or(c.Unhealthy, 3)
	c.Healthy = inherit.Or(c.Healthy, 2)
	c.Jitter = inherit.Or(c.Jitter, 0.2)
	c.Concurrency = inherit.Or(c.Concurrency, 64)
	return c
}

func (c *HealthConfig) validate() (errs []error) {
	problem := func(field string, value any, want string) {
		errs = append(errs, fmt.Errorf("balancer: Health.%s is %v, want %s", field, value, want))
	}
	kinds := 0
	for _, set := range []bool{c.Path != "", c.TCP == On, c.Check != nil} {
		if set {
			kinds++
		}
	}
	if kinds > 1 {
		errs = append(errs, errors.New("balancer: Health has more than one of Path, TCP and Check, want one"))
	}
	if c.Path != "" && !strings.HasPrefix(c.Path, "/") {
		problem("Path", strconv.Quote(c.Path), "a path that begins with /")
	}
	if c.Path == "" && (c.Method != "" || c.Host != "" || len(c.Header) > 0 || len(c.Status) > 0 || c.Body != "") {
		errs = append(errs, errors.New("balancer: Health says what an HTTP request is like, want a Path"))
	}
	if c.Scheme != "" && c.Scheme != "http" && c.Scheme != "https" {
		problem("Scheme", strconv.Quote(c.Scheme), "http or https")
	}
	for _, s := range c.Status {
		if s.First < 100 || s.Last > 599 || s.First > s.Last {
			problem("Status", s, "a range within 100-599")
		}
	}
	if c.Port < 0 || c.Port > 65535 {
		problem("Port", c.Port, "between 1 and 65535")
	}
	const shortest = 10 * time.Millisecond
	if c.Interval != 0 && c.Interval < shortest {
		problem("Interval", c.Interval, ">= 10ms")
	}
	if c.UnhealthyInterval != 0 && c.UnhealthyInterval < shortest {
		problem("UnhealthyInterval", c.UnhealthyInterval, ">= 10ms")
	}
	if c.Timeout < 0 {
		problem("Timeout", c.Timeout, "> 0")
	}
	if c.Unhealthy < 0 {
		problem("Unhealthy", c.Unhealthy, ">= 1")
	}
	if c.Healthy < 0 {
		problem("Healthy", c.Healthy, ">= 1")
	}
	if !(c.Jitter <= 1) || c.Jitter < 0 && !finite(-c.Jitter) { // NaN as well
		problem("Jitter", c.Jitter, "<= 1")
	}
	if c.Concurrency < 0 {
		problem("Concurrency", c.Concurrency, ">= 1")
	}
	return errs
}

// StatusRange is HTTP statuses from First to Last, both included. As text it is
// "200-299", or "204" where there is but one.
type StatusRange struct{ First, Last int }

// String returns the range as text.
func (s StatusRange) String() string {
	if s.First == s.Last {
		return strconv.Itoa(s.First)
	}
	return strconv.Itoa(s.First) + "-" + strconv.Itoa(s.Last)
}

// MarshalText returns the range as text.
func (s StatusRange) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText writes. Config.Validate says whether the
// statuses make sense.
func (s *StatusRange) UnmarshalText(text []byte) error {
	first, last, isRange := strings.Cut(string(text), "-")
	var r StatusRange
	var err, errLast error
	r.First, err = strconv.Atoi(first)
	r.Last = r.First
	if isRange {
		r.Last, errLast = strconv.Atoi(last)
	}
	if err != nil || errLast != nil {
		return errors.New(`want a status such as "204" or a range such as "200-299"`)
	}
	*s = r
	return nil
}
