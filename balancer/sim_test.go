package balancer_test

import (
	"container/heap"
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/balancer/loadreport"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/outcome"
)

// sim is a fleet in virtual time: one goroutine inside a synctest bubble plays
// all events in order, and the balancers under test are the real ones. A call
// is two events and no goroutine.
type sim struct {
	t       *testing.T
	seed    uint64
	made    uint64 // clients
	rand    *rand.Rand
	start   time.Time
	events  moments
	serial  int
	servers []*simServer
	byKey   map[string]*simServer
	calls   []simCall
}

type simCall struct {
	at      time.Duration
	latency time.Duration
	server  int
	failed  bool
}

type moment struct {
	at     time.Time
	serial int // events at the same instant happen in the order they were made
	do     func()
}

type moments []moment

func (e moments) Len() int { return len(e) }
func (e moments) Less(i, j int) bool {
	if !e[i].at.Equal(e[j].at) {
		return e[i].at.Before(e[j].at)
	}
	return e[i].serial < e[j].serial
}
func (e moments) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *moments) Push(x any)   { *e = append(*e, x.(moment)) }
func (e *moments) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

func newSim(t *testing.T, seed uint64) *sim {
	return &sim{t: t, seed: seed, rand: rand.New(rand.NewPCG(seed, 1)), start: time.Now(), byKey: map[string]*simServer{}}
}

func (s *sim) now() time.Duration { return time.Since(s.start) }

func (s *sim) at(d time.Duration, do func()) {
	s.serial++
	heap.Push(&s.events, moment{s.start.Add(d), s.serial, do})
}

// run plays all events.
func (s *sim) run() {
	for len(s.events) > 0 {
		e := heap.Pop(&s.events).(moment)
		time.Sleep(time.Until(e.at))
		e.do()
	}
}

// simServer serves first come, first served, with so many calls at a time.
type simServer struct {
	sim     *sim
	id      int
	cores   int
	busy    int
	queue   []func()
	load    loadreport.Server // what its responses report
	service func(now time.Duration) (service time.Duration, o outcome.Outcome)
}

func (s *sim) addServer(cores int, service func(now time.Duration) (time.Duration, outcome.Outcome)) *simServer {
	server := &simServer{sim: s, id: len(s.servers), cores: cores, service: service}
	server.load.Capacity = max(cores, 1)
	s.servers = append(s.servers, server)
	s.byKey[server.addr()] = server
	return server
}

func (s *simServer) addr() string { return addr(s.id) }

// answered is told what came of a call, and what the server reports with it.
type answered func(outcome.Outcome, loadreport.Report)

// serve calls done when the server has answered. It reports as one does that has
// taken the call in at once: waiting is a part of its service time.
func (s *simServer) serve(done answered) {
	request := s.load.Begin(time.Now())
	if s.cores > 0 && s.busy == s.cores {
		s.queue = append(s.queue, func() { s.begin(&request, done) })
		return
	}
	s.begin(&request, done)
}

func (s *simServer) begin(request *loadreport.Request, done answered) {
	took, o := s.service(s.sim.now())
	s.busy++
	s.sim.at(s.sim.now()+took, func() {
		s.busy--
		report := request.Answered(time.Now(), o.Class == outcome.Failure)
		request.Done(time.Now())
		done(o, report)
		if len(s.queue) > 0 {
			next := s.queue[0]
			s.queue = s.queue[1:]
			next()
		}
	})
}

// last returns the endpoints of the last n servers.
func (s *sim) last(n int) []discovery.Endpoint {
	var list []discovery.Endpoint
	for _, server := range s.servers[len(s.servers)-n:] {
		list = append(list, discovery.Endpoint{Addr: server.addr()})
	}
	return list
}

// client makes a balancer over the last n servers.
func (s *sim) client(n int, policy func(rand.Source) balancer.Policy, cfg balancer.Config) (*balancer.Balancer, *feed) {
	r := newFeed(s.last(n)...)
	cfg.Policy = policy(rand.NewPCG(s.rand.Uint64(), s.rand.Uint64()))
	cfg.Breaker.Rand = s.rand.Float64
	b, err := balancer.New("sim", r, &cfg)
	require.NoError(s.t, err)
	s.made++
	b.Seed(rand.NewPCG(s.seed, s.made))
	require.NoError(s.t, b.Ready(s.t.Context()))
	s.t.Cleanup(func() { require.NoError(s.t, b.Close()) })
	return b, r
}

// call sends one call through b. A deadline of 0 is none.
func (s *sim) call(b *balancer.Balancer, deadline time.Duration) {
	start := s.now()
	lease, err := b.Acquire(context.Background(), balancer.Call{Now: time.Now()})
	if err != nil {
		s.calls = append(s.calls, simCall{at: start, server: -1, failed: true})
		return
	}
	l := &lease
	server := s.byKey[l.Node().Key()]
	index := len(s.calls)
	s.calls = append(s.calls, simCall{at: start, server: server.id, latency: -1})
	finish := func(o outcome.Outcome, report loadreport.Report) {
		if s.calls[index].latency >= 0 {
			return
		}
		l.Report(time.Now(), report)
		s.calls[index].latency = s.now() - start
		s.calls[index].failed = o.Class != outcome.Success
		l.Done(time.Now(), o)
	}
	server.serve(finish)
	if deadline > 0 {
		s.at(start+deadline, func() {
			finish(outcome.Outcome{Class: outcome.Neutral, Err: context.DeadlineExceeded}, loadreport.Report{})
		})
	}
}

// poisson has do called at rate per second until end.
func (s *sim) poisson(rate float64, end time.Duration, do func()) {
	var next func()
	wait := func() time.Duration { return time.Duration(s.rand.ExpFloat64() / rate * float64(time.Second)) }
	next = func() {
		do()
		if at := s.now() + wait(); at < end {
			s.at(at, next)
		}
	}
	s.at(s.now()+wait(), next)
}

// between returns the calls that began in [from, to).
func (s *sim) between(from, to time.Duration) []simCall {
	var calls []simCall
	for _, c := range s.calls {
		if c.at >= from && c.at < to {
			calls = append(calls, c)
		}
	}
	return calls
}

func percentile(calls []simCall, p float64) time.Duration {
	latencies := make([]time.Duration, len(calls))
	for i, c := range calls {
		latencies[i] = c.latency
	}
	slices.Sort(latencies)
	return latencies[min(len(latencies)-1, int(math.Ceil(p*float64(len(latencies))))-1)]
}

func share(calls []simCall, of func(simCall) bool) float64 {
	n := 0
	for _, c := range calls {
		if of(c) {
			n++
		}
	}
	return float64(n) / float64(len(calls))
}

// normal draws from a normal distribution, never below low or above high.
func (s *sim) normal(mean, dev, low, high time.Duration) time.Duration {
	d := time.Duration(s.rand.NormFloat64()*float64(dev)) + mean
	return min(max(d, low), high)
}

// serviceLaw is how long the fleet's servers take: max(0, N(40 ms, 40 ms)), which
// has a mean of 43.3 ms.
func (s *sim) serviceLaw() time.Duration {
	return s.normal(40*time.Millisecond, 40*time.Millisecond, 0, math.MaxInt64)
}

const serviceMean = 43.33e-3
