package balancer

import (
	"math"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay/balancer/loadreport"
)

// LoadReport is a [Cost] by what the servers themselves say of their load in their
// responses (package loadreport): a score after C3 (Suresh et al., NSDI 2015).
//
//	latency − service + mean · (late/mean · (1 + awaiting + in flight) / (weight · slow start))³
//
// The service time and the calls in flight are averages of what the node reports,
// and mean is the service time of all nodes; late is the service time and what the
// node is silent for longer than its latency, or fails more than others, as
// [PeakEWMA] reckons both. The cube has a node that is twice as busy cost eight times
// as much. C3 cubes the calls only: then a node that has become twelve times slower
// still gets more than a third of the calls under way that the others have, and every
// client loses a call in 500 to it; so the time is cubed as well. What is reported in
// flight fades by and by, so that a node that nobody asks is asked again.
//
// [P2C] with LoadReport does not draw two nodes: it takes the best of all up to 128,
// and beyond that of 8 at random.
//
// Use it where you can have the servers report (loadreport.Server is a few lines) and
// many clients share them, each with few calls at a time: there a client's own calls
// say little of the nodes' load. A node that does not report, or no longer, is taken
// for as busy as the others are on average, and as much slower as its latency says;
// if none reports, the cost is PeakEWMA's.
type LoadReport struct{}

// Cost returns the score, in nanoseconds.
func (LoadReport) Cost(n *Node, now time.Time) float64 { return n.c3(n.owner, n.owner.since(now)) }

// ReadsReports is true.
func (LoadReport) ReadsReports() bool { return true }

// ReportReader is a [Policy] or a [Cost] that goes by what servers report: only for
// those are responses looked at for it.
type ReportReader interface {
	ReadsReports() bool
}

func readsReports(policyOrCost any) bool {
	r, ok := policyOrCost.(ReportReader)
	return ok && r.ReadsReports()
}

// reports is what a node has said of itself. The words are of two float32, or of one
// and its tick: see packEstimate.
type reports struct {
	queue   atomic.Uint64 // average calls in flight, and when they were last reported
	service atomic.Uint64 // average service time in nanoseconds; 0: never reported
	rps     atomic.Uint64 // the last, and when; 0: none that a weight could be made of
	usage   atomic.Uint64 // the last utilization and failures per request
	since   atomic.Int64  // when the present series of rps began
}

const fadePerTick = math.Log2E * float64(int64(1)<<tickShift) / float64(reportFade)

// fleetReports is what the nodes say on average, by which those are taken that say
// nothing.
type fleetReports struct {
	renewAt atomic.Int64
	average atomic.Uint64 // calls in flight and service time; 0: nobody reports
}

const (
	// reportWeight is what one report counts in the averages: not all, for the
	// load of a moment is over when the next call comes, and clients that
	// believed in it would all come at the same time.
	reportWeight = 0.4
	// reportFade is the time in which the reported calls in flight lose their
	// weight, by a factor of e: long enough for a client that has a hundred nodes
	// and little to send, and so hears of each but now and then.
	reportFade = 30 * time.Second
	// reportMissing is for how long a node may answer without a report before
	// it is taken for one that does not report.
	reportMissing = int32(5 * time.Second >> tickShift)
)

// Report tells what the answer said of the node's load. Call it before
// [Lease.Answered], or before [Lease.Done] if the report comes at the end, as
// gRPC's does. What is no finite number of 0 or more counts as not said. For HTTP
// the balancer's layer does it, if the policy is a [ReportReader].
func (l *Lease) Report(now time.Time, r loadreport.Report) {
	if l.state&leaseOpen != 0 {
		l.node.Report(now, r)
	}
}

// Report is [Lease.Report] for what a node says of its load without having been called,
// over a stream that it is asked for. A zero now means that the clock is read.
func (n *Node) Report(now time.Time, r loadreport.Report) {
	at := n.owner.since(now)
	n.server.take(at, &r)
	n.owner.fleet.renew(n.owner, at)
}

// ReadsReports reports whether the balancer's policy is a [ReportReader] that wants
// reports: else nobody needs to look for them.
func (b *Balancer) ReadsReports() bool { return b.reads }

// Reported returns what the node's reports come to: in InFlight and ServiceTime
// averages, in RPS, EPS and ApplicationUtilization the last (which may have been
// the processors' utilization). It is false if the node does not report.
func (n *Node) Reported(now time.Time) (loadreport.Report, bool) {
	queue, service, known := n.reportedLoad(n.owner.since(now))
	rps, _ := unpackEstimate(n.server.rps.Load())
	utilization, errors := unpackRate(n.server.usage.Load())
	if rps == 0 {
		utilization = 0
	}
	r := loadreport.Report{
		ApplicationUtilization: float64(utilization), RPS: float64(rps), EPS: float64(errors * rps),
	}
	if known {
		r.InFlight, r.ServiceTime = queue, time.Duration(service)
	}
	return r, known || rps > 0
}

func (s *reports) take(now int64, r *loadreport.Report) {
	tick := tickOf(now)
	if r.ServiceTime > 0 && r.InFlight >= 0 && r.InFlight <= math.MaxFloat32 {
		first := s.service.Load() == 0
		average(&s.queue, tick, float32(r.InFlight), first)
		average(&s.service, tick, float32(r.ServiceTime), first)
	}
	utilization := r.Utilization()
	if !(utilization > 0 && r.RPS > 0 && r.EPS >= 0 && max(utilization, r.RPS, r.EPS) <= math.MaxFloat32) {
		return
	}
	if s.rps.Load() == 0 {
		s.since.Store(now)
	}
	s.usage.Store(packRate(float32(utilization), float32(r.EPS/r.RPS)))
	s.rps.Store(packEstimate(max(float32(r.RPS), math.SmallestNonzeroFloat32), tick))
}

// average takes a value into a word. Only the calls in flight fade, when they are
// read: nobody forgets how long it takes to serve one.
func average(word *atomic.Uint64, tick uint32, value float32, first bool) {
	for {
		old := word.Load()
		mean, _ := unpackEstimate(old)
		if first {
			mean = value
		}
		mean += reportWeight * (value - mean)
		if word.CompareAndSwap(old, packEstimate(mean, tick)) {
			return
		}
	}
}

// reportedLoad returns the calls in flight and the service time, and whether the
// node reports at all.
func (n *Node) reportedLoad(now int64) (queue, service float64, known bool) {
	mean, tick := unpackEstimate(n.server.service.Load())
	_, answered := unpackEstimate(n.estimate.Load())
	if mean == 0 || ticksSince(int64(answered), tick) > reportMissing {
		return 0, 0, false
	}
	inFlight, tick := unpackEstimate(n.server.queue.Load())
	return float64(inFlight) * exp2(float64(ticksSince(now>>tickShift, tick))*fadePerTick), float64(mean), true
}

// renew makes the averages anew if it is time.
func (f *fleetReports) renew(b *Balancer, now int64) {
	due := f.renewAt.Load()
	if now < due || !f.renewAt.CompareAndSwap(due, now+refreshEvery) {
		return
	}
	s := b.current.Load()
	if s == nil {
		return
	}
	known, queues, services := 0.0, 0.0, 0.0
	for i := range min(len(s.eligible), refreshSample) {
		n := s.eligible[i*max(1, len(s.eligible)/refreshSample)]
		if queue, service, ok := n.reportedLoad(now); ok {
			known, queues, services = known+1, queues+queue, services+service
		}
	}
	if known > 0 {
		f.average.Store(packRate(float32(queues/known), float32(services/known)))
	}
}

func (n *Node) c3(b *Balancer, now int64) float64 {
	cost := n.peakEWMA(b, now)
	estimate, tick := unpackEstimate(n.estimate.Load())
	latency := float64(abs(estimate)) * decay(now>>tickShift, tick)
	queue, service, known := n.reportedLoad(now)
	meanQueue, meanService := unpackRate(b.fleet.average.Load())
	mean := float64(meanService)
	switch {
	case mean == 0:
		return cost
	case !known:
		queue, service = float64(meanQueue), mean
		if typical := b.typicalLatency(); typical > 0 && latency > 0 {
			service *= latency / typical
		}
	}
	own := float64(awaitingOf(n.load.Load()))
	inverse := n.inverseWeight(b, now)
	expected := cost / ((own + 1) * inverse) // with the stall and the penalty for failures
	late := service + max(0, expected-latency)
	q := late / mean * (1 + own + queue) * inverse
	return expected - service + mean*q*q*q
}

// p2cLoadReport takes the best of all, or of some.
type p2cLoadReport struct{ p2c }

const (
	scanAll  = 128 // nodes, up to which all are asked
	scanSome = 8   // of more than that
)

func (p *p2cLoadReport) Pick(call Call) *Node {
	n := len(p.nodes)
	now := p.owner.since(call.Now)
	asked, i := n, p.draw.below(n) // from anywhere: equals should be chosen alike
	if n > scanAll {
		asked = scanSome
	}
	best, least := p.nodes[i], math.Inf(1)
	for range asked {
		node := p.nodes[i]
		if len(call.Avoid) == 0 || !call.avoids(node) {
			if cost := node.c3(p.owner, now); cost < least {
				best, least = node, cost
			}
		}
		switch i++; {
		case asked < n:
			i = p.draw.below(n)
		case i == n:
			i = 0
		}
	}
	return best
}
