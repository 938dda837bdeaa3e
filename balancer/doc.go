// Package balancer spreads calls over the nodes of a service, from within the
// client.
//
//	b, err := balancer.New("orders", discovery.DNS(nil), nil)
//	if err != nil {
//		return err
//	}
//	defer b.Close()
//	hc := &http.Client{Transport: b.Layer(http.DefaultTransport)}
//	resp, err := hc.Get("http://orders/v1/items")
//
// A [Balancer] keeps three things apart:
//
//   - who there is: a [discovery.Resolver] yields the endpoints, and each of them
//     is a [Node] whose state (latency, failures, what is in flight, its breaker)
//     survives every update of the set;
//   - who is eligible: not a node whose breaker is open, one that was ejected,
//     that is draining, or whose priority is not needed. A half-open node gets a
//     few calls beside the others. With less than half of the nodes left,
//     ejections are ignored ([Config.PanicThreshold]), open breakers never;
//   - who is chosen: a [Policy] makes a [Picker] for the eligible nodes. [P2C] is
//     the default and the best for nearly everybody; [RoundRobin], [Random] and
//     [WeightedRoundRobin] are for those who know better. What a node costs
//     ([PeakEWMA], [InFlight]) is apart from how one is chosen.
//
// Picks take no lock, allocate nothing, and cost the same for three nodes and
// for ten thousand. A node that refuses is passed over for another at once.
//
// The core knows nothing of HTTP: [Balancer.Acquire] gives a [Lease] on a node,
// whose [Lease.Answered] and [Lease.Done] tell what came of it. [Balancer.Layer]
// is that for net/http.
//
// What it does not do: it runs no health checks of its own and detects no
// outliers beyond what the nodes' breakers see, it knows nothing of zones, and
// it does not hash.
package balancer
