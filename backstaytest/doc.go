// Package backstaytest helps to test what calls other services: servers that
// fail on command, in memory or on loopback, and acceptance suites for layers,
// resolvers and policies of one's own.
//
// A [Fleet] is the servers of one service. Each can be killed, restarted,
// stalled, slowed, made to fail, to reset connections or to truncate its
// answers, and counts what it sees; servers join and leave:
//
//	fleet := backstaytest.NewFleet(t, 4, nil)
//	fleet.Server(0).Kill()
//	fleet.Server(1).FailNext(3, http.StatusServiceUnavailable)
//	fleet.Server(2).Stall()
//	… // calls through what is tested, which asks fleet.Resolver() for endpoints
//	if n := fleet.Repeated(); len(n) > 0 {
//		t.Errorf("sent more than once: %v", n)
//	}
//
// With a [Network] a fleet is in memory and works inside a testing/synctest
// bubble, where an hour of calls takes no time. [NewServer] is a single server
// in memory.
//
//	                 real sockets          in memory, fit for a bubble
//	one server       NewFleet(t, 1, nil)   NewServer(t, handler, nil)
//	many servers     NewFleet(t, n, nil)   NewFleet(t, n, &FleetConfig{Network: NewNetwork()})
//
// [Faults] is a layer that makes requests fail, by script or at random with a
// seed. A [Recorder] keeps the events of Backstay's parts. [CheckLeaks] finds
// goroutines that a test leaves behind; inside a bubble synctest does that.
//
// [TestTransport] checks that a layer keeps the contract of http.RoundTripper,
// [TestResolver] that of discovery.Resolver, [TestPolicy] that of
// balancer.Policy. Backstay's own layers, resolvers and policies are under the
// same suites.
//
// The package imports testing and so belongs into tests only, but for Faults.
// Servers speak real HTTP through net/http; it does not simulate a network's
// latency or loss, and it does not fake time: that is what synctest is for.
package backstaytest
