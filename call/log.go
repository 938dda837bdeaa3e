package call

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/backstay/backstay/outcome"
)

// Log collects the calls that are made under a context. Its methods may be
// called at any time, also while calls are under way.
type Log struct {
	mu     sync.Mutex
	frames []*Frame
}

type logKey struct{}

// WithLog returns a context whose calls are logged, and the log. Every call
// under it counts, also those that a redirect or a token fetch makes; a log in
// an inner context takes the calls made under that one. It keeps them all, and so
// belongs into the context of a request or a job, not into one that lives on.
func WithLog(ctx context.Context) (context.Context, *Log) {
	l := new(Log)
	return context.WithValue(ctx, logKey{}, l), l
}

// Logged reports whether calls under ctx are logged.
func Logged(ctx context.Context) bool { return logOf(ctx) != nil }

func logOf(ctx context.Context) *Log {
	l, _ := ctx.Value(logKey{}).(*Log)
	return l
}

func (l *Log) add(f *Frame) {
	l.mu.Lock()
	l.frames = append(l.frames, f)
	l.mu.Unlock()
}

// Calls returns a snapshot of the calls made so far, in the order of their
// beginnings.
func (l *Log) Calls() []Record {
	l.mu.Lock()
	frames := slices.Clone(l.frames)
	l.mu.Unlock()
	records := make([]Record, len(frames))
	for i, f := range frames {
		records[i] = f.Record()
	}
	return records
}

// String returns the calls, one to a line.
func (l *Log) String() string {
	var lines []string
	for _, r := range l.Calls() {
		lines = append(lines, r.String())
	}
	return strings.Join(lines, "\n")
}

// Record is one call, as far as it has come.
type Record struct {
	Info
	// Duration is the time until the caller got headers or an error; 0 while
	// the call is under way.
	Duration time.Duration
	// Status is the answer's status, if it has one: those of functions have none.
	Status int
	// Err is what the caller got instead of an answer.
	Err error
	// Cache is what the cache did, or empty: "hit", "miss", …
	Cache string
	// Attempts are those that were sent, in order.
	Attempts []Attempt
	// Refusals are those after the last attempt: why there was no other.
	Refusals []Refusal
	// GaveUp is why there was no other attempt although the last one had failed in
	// a way that is tried again for some calls: a retry.Reason. Otherwise it is
	// empty.
	GaveUp string
}

// Attempt is one try of a call on one node.
type Attempt struct {
	// Node and Addr are the node's identity and address; empty where there is
	// no balancer.
	Node, Addr string
	// Start is when the attempt was sent.
	Start time.Time
	// Slept is how long the call waited before it.
	Slept time.Duration
	// Why is what made it wait, or not: Backoff, Hint or NothingSent; empty for
	// attempts that do not follow a failed one.
	Why string
	// Budget is how many more extra attempts the budget allowed when this one had
	// been taken from it; of a budget that is off, math.MaxInt.
	Budget int
	// Headers is the time to the response's headers or to the error; 0 while
	// it is awaited. Total is the time to the end of the body; 0 while open.
	Headers, Total time.Duration
	// Status is the answer's status, 0 if there was none or it has none.
	Status int
	// Outcome is what the layers made of it.
	Outcome outcome.Outcome
	// Refusals are the nodes that were asked before and refused.
	Refusals []Refusal
	// Hedge says that the attempt was sent while another was under way. Of these
	// the one whose answer the caller did not get is marked by its outcome's
	// error, unless it had failed by itself.
	Hedge bool

	key any
}

// What [Attempt.Why] can be.
const (
	// Backoff: the call waited by its own rule.
	Backoff = "backoff"
	// Hint: the peer said how long to wait.
	Hint = "hint"
	// NothingSent: the failed attempt had not reached its node, and another one was
	// tried at once.
	NothingSent = "nothing sent"
)

// Refusal is a node or a layer that refused an attempt before it was sent.
type Refusal struct {
	// Node is the node's identity; empty if a layer refused for all nodes.
	Node string
	// By names what refused: "breaker", "concurrency", "rate", …; empty if there
	// was no node to ask.
	By string
	// Err is the refusal's error.
	Err error
}

// Record returns the call as far as it has come.
func (f *Frame) Record() Record {
	if f == nil {
		return Record{}
	}
	f.lock()
	defer f.unlock()
	r := Record{
		Info: f.info, Status: f.status, Err: f.err, Cache: f.cache,
		Duration: f.took, Attempts: slices.Clone(f.attempts), Refusals: slices.Clone(f.refused),
		GaveUp: f.gaveUp,
	}
	return r
}

// String returns the call as one line, such as
//
//	GET orders /v1/items: 200 in 63ms; 10.0.0.1:80 503 in 2ms; slept 41ms; 10.0.0.2:80 200 in 20ms
func (r Record) String() string {
	var b strings.Builder
	for _, s := range []string{r.Method, r.Service, r.Path} {
		if s != "" {
			if b.Len() > 0 {
				b.WriteByte(' ')
			}
			b.WriteString(s)
		}
	}
	if b.Len() == 0 {
		b.WriteString("call")
	}
	switch {
	case r.Duration == 0 && r.Status == 0 && r.Err == nil:
		b.WriteString(": under way")
	case r.Err != nil:
		fmt.Fprintf(&b, ": failed in %s: %v", round(r.Duration), r.Err)
	case r.Status == 0: // what was called has none
		fmt.Fprintf(&b, ": ok in %s", round(r.Duration))
	default:
		fmt.Fprintf(&b, ": %d in %s", r.Status, round(r.Duration))
	}
	if r.Cache != "" {
		b.WriteString("; cache " + r.Cache)
	}
	for _, a := range r.Attempts {
		if a.Slept > 0 {
			fmt.Fprintf(&b, "; slept %s", round(a.Slept))
			if a.Why == Hint {
				b.WriteString(" as told")
			}
		}
		writeRefusals(&b, a.Refusals)
		b.WriteString("; " + a.String())
	}
	writeRefusals(&b, r.Refusals)
	if r.GaveUp != "" && len(r.Refusals) == 0 { // else they say it
		b.WriteString("; gave up: " + r.GaveUp)
	}
	return b.String()
}

func writeRefusals(b *strings.Builder, refusals []Refusal) {
	for _, refusal := range refusals {
		b.WriteString("; " + refusal.String())
	}
}

// String returns the attempt as a few words: where, what came of it, how long.
func (a Attempt) String() string {
	where := a.Addr
	if a.Node != "" && a.Node != a.Addr {
		where = a.Node + " (" + a.Addr + ")"
	}
	if where == "" {
		where = "sent"
	}
	if a.Hedge {
		where = "hedge " + where
	}
	switch {
	case a.Headers == 0 && a.Status == 0 && a.Outcome.Err == nil:
		return where + " awaited"
	case a.Status == 0 && a.Outcome.Err == nil:
		return fmt.Sprintf("%s ok in %s", where, round(a.Headers))
	case a.Status == 0:
		return fmt.Sprintf("%s %v in %s", where, cause(a.Outcome.Err), round(a.Headers))
	case a.Total > 0 && a.Outcome.Err != nil && a.Outcome.Class == outcome.Failure && a.Status < 400:
		return fmt.Sprintf("%s %d in %s, body broke after %s: %v", where, a.Status, round(a.Headers), round(a.Total), cause(a.Outcome.Err))
	}
	return where + " " + strconv.Itoa(a.Status) + " in " + round(a.Headers).String()
}

// cause returns the innermost error: what is around it names the node and the
// address once more.
func cause(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}

// String returns who refused. Err says more.
func (r Refusal) String() string {
	switch {
	case r.By == "":
		return "no node"
	case r.Node == "":
		return "refused by " + r.By
	}
	return r.Node + " refused by its " + r.By
}

// round keeps three digits or so: a log line is for reading.
func round(d time.Duration) time.Duration {
	switch {
	case d >= time.Second:
		return d.Round(10 * time.Millisecond)
	case d >= 10*time.Millisecond:
		return d.Round(time.Millisecond)
	case d >= time.Millisecond:
		return d.Round(100 * time.Microsecond)
	}
	return d.Round(time.Microsecond)
}

// Finished is emitted once per call when the caller gets headers or an error.
// It is not emitted when nobody observes.
type Finished struct{ Record Record }

// EventName is "call.finished".
func (Finished) EventName() string { return "call.finished" }

// Level is Debug for a call that went well at the first attempt, Info for one that
// took more than that, and Warn for one that failed.
func (e Finished) Level() slog.Level {
	switch r := e.Record; {
	case r.Err != nil || r.Status >= 500:
		return slog.LevelWarn
	case len(r.Attempts) > 1 || len(r.Refusals) > 0:
		return slog.LevelInfo
	}
	return slog.LevelDebug
}

// LogValue holds the call's line, service, route, status, duration and number
// of attempts.
func (e Finished) LogValue() slog.Value {
	r := e.Record
	return slog.GroupValue(
		slog.String("call", r.String()),
		slog.String("service", r.Service),
		slog.String("route", r.Route),
		slog.Int("status", r.Status),
		slog.Duration("duration", r.Duration),
		slog.Int("attempts", len(r.Attempts)),
	)
}
