package loadreport

import (
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// Server measures a server's load: what it has in flight, how long it takes, and
// how much it answers. The zero value is ready; the fields must not be changed once
// it is in use. A process has one for everything that shares its resources. All
// methods may be called concurrently.
type Server struct {
	// Capacity is how many requests the server can work on at a time. By it the
	// report has an ApplicationUtilization: the share that was in use in the last
	// seconds, 1 while requests wait. Set it where requests mostly wait for
	// others, or use Fill. Negative: the report has none. Default: the number of
	// processors (runtime.GOMAXPROCS).
	Capacity int
	// Fill may change each report before it is sent, and add to it: the
	// utilization by a better measure, metrics of its own. It is called for every
	// response, by many goroutines at once. Default: none.
	Fill func(*Report)

	inFlight atomic.Int64
	service  atomic.Uint64 // seconds, as the bits of a float64; 0: unknown
	answers  atomic.Uint64 // since the rates were last renewed
	failures atomic.Uint64
	used     atomic.Uint64 // what of the capacity each answer found in use
	renewAt  atomic.Int64  // Unix nanoseconds; 0: not yet begun
	rps      atomic.Uint64
	eps      atomic.Uint64
	usedRate atomic.Uint64 // as rps

	processors atomic.Int64 // GOMAXPROCS, since the rates were last renewed

	mu      sync.Mutex // held by who renews
	renewed time.Time
}

const (
	// smoothing is the weight of one answer in the service time.
	smoothing = 0.05
	// rateEvery is how often the rates are made anew, and rateDecay the time in
	// which the past loses its weight in them, by a factor of e.
	rateEvery = time.Second
	rateDecay = 5 * time.Second
)

// Request is one request that a server has. It must not be used concurrently.
type Request struct {
	server   *Server
	start    time.Time
	answered bool
}

// Begin counts a request. [Request.Done] must follow, in a deferred call. A zero now
// means that the clock is read.
func (s *Server) Begin(now time.Time) Request {
	if now.IsZero() {
		now = time.Now()
	}
	s.inFlight.Add(1)
	return Request{server: s, start: now}
}

// Answered tells that the request is answered, at the response's headers, and
// returns the report to send with them. A failure's haste says nothing about the
// time that requests take: it only counts for EPS.
func (r *Request) Answered(now time.Time, failed bool) Report {
	if now.IsZero() {
		now = time.Now()
	}
	if !r.answered {
		r.answered = true
		r.server.count(now, now.Sub(r.start), failed)
	}
	return r.server.report(1)
}

// Skip leaves a request out of RPS, EPS and ServiceTime: one that became something
// else, such as a connection of its own protocol.
func (r *Request) Skip() { r.answered = true }

// Done ends the request. One that was not answered has failed.
func (r *Request) Done(now time.Time) {
	if r.server == nil {
		return
	}
	if !r.answered {
		r.Answered(now, true)
	}
	r.server.inFlight.Add(-1)
	r.server = nil
}

// Report returns the present report, of all requests that are under way.
func (s *Server) Report() Report { return s.report(0) }

// report leaves out so many of the requests in flight.
func (s *Server) report(but int64) Report {
	r := Report{
		RPS: load(&s.rps), EPS: load(&s.eps),
		InFlight:    float64(max(s.inFlight.Load()-but, 0)),
		ServiceTime: time.Duration(load(&s.service) * float64(time.Second)),
	}
	if capacity := s.capacity(); capacity > 0 && r.RPS > 0 {
		r.ApplicationUtilization = load(&s.usedRate) / r.RPS / float64(capacity)
	}
	if s.Fill != nil {
		s.Fill(&r)
	}
	return r
}

func (s *Server) capacity() int64 {
	if s.Capacity != 0 {
		return int64(s.Capacity)
	}
	n := s.processors.Load()
	if n == 0 { // asking takes a lock, so it is not done for every request
		n = int64(runtime.GOMAXPROCS(0))
		s.processors.Store(n)
	}
	return n
}

func (s *Server) count(now time.Time, took time.Duration, failed bool) {
	s.answers.Add(1)
	// What requests find when they come is what there is on average (PASTA), and
	// what they find when they go is the same.
	s.used.Add(uint64(max(min(s.inFlight.Load()-1, s.capacity()), 0))) //nolint:gosec // not negative
	if failed {
		s.failures.Add(1)
	} else {
		s.served(max(took.Seconds(), 1e-6)) // what is written has six decimals
	}
	due := s.renewAt.Load()
	if now.UnixNano() < due || !s.mu.TryLock() {
		return
	}
	defer s.mu.Unlock()
	if s.renewAt.Load() != due {
		return // somebody else has just done it
	}
	if due > 0 {
		passed := now.Sub(s.renewed)
		past := math.Exp(-float64(passed) / float64(rateDecay))
		if load(&s.rps) == 0 {
			past = 0 // there is none
		}
		renew(&s.rps, &s.answers, passed, past)
		renew(&s.eps, &s.failures, passed, past)
		renew(&s.usedRate, &s.used, passed, past)
	}
	s.renewed = now
	s.processors.Store(0)
	s.renewAt.Store(now.Add(rateEvery).UnixNano())
}

func (s *Server) served(seconds float64) {
	for {
		word := s.service.Load()
		value := math.Float64frombits(word)
		if value == 0 {
			value = seconds
		} else {
			value += smoothing * (seconds - value)
		}
		if s.service.CompareAndSwap(word, math.Float64bits(value)) {
			return
		}
	}
}

// renew takes what was counted into a rate, of which the past counts so much.
func renew(rate, counted *atomic.Uint64, passed time.Duration, past float64) {
	recent := float64(counted.Swap(0)) / passed.Seconds()
	rate.Store(math.Float64bits(load(rate)*past + recent*(1-past)))
}

func load(word *atomic.Uint64) float64 { return math.Float64frombits(word.Load()) }
