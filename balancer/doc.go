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
//   - who is eligible: not a node whose breaker is open, that is ejected because
//     it does worse than the others ([OutlierConfig]), fails its health checks
//     ([HealthConfig]), drains, or whose priority or zone is not needed
//     ([ZoneConfig]). A call may want only a [Subset]. A half-open node gets a few
//     calls beside the others. With less than half of the nodes left, ejections and
//     health checks are ignored ([Config.PanicThreshold]), open breakers never;
//   - who is chosen: a [Policy] makes a [Picker] for the eligible nodes. [P2C] is
//     the default and the best for nearly everybody; what a node costs ([PeakEWMA],
//     [LoadReport], [InFlight], [Connections]) is apart from how one is chosen.
//     [Rendezvous] and [Maglev] keep what has the same key on the same node;
//     [LeastRequest], [RoundRobin], [WeightedRoundRobin] and [Random] are for those
//     who know better.
//
// Picks take no lock and allocate nothing, and most cost the same for three nodes
// and for ten thousand; what scans says so. A node that refuses is passed over for
// another at once.
//
// The core knows nothing of HTTP: [Balancer.Acquire] gives a [Lease] on a node,
// whose [Lease.Answered] and [Lease.Done] tell what came of it. [Balancer.Layer]
// is that for net/http, [Balancer.DialContext] for connections of any protocol.
// [Balancer.Snapshot] shows what there is, and why.
package balancer
