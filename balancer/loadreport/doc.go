// Package loadreport has servers tell their clients how busy they are, in a header
// of each response, and has clients read it.
//
// A client sees only its own calls. The more clients share a fleet, the less their
// own calls say about the load of a node, while the node itself knows. On the
// server:
//
//	var load loadreport.Server
//	http.ListenAndServe(":8080", load.Handler(mux))
//
// and in the client a policy that goes by it: balancer.P2C with the cost
// balancer.LoadReport, or balancer.WeightedRoundRobin with Reported set.
//
// The header is that of ORCA, the open standard for such reports, in its text form,
// so that Envoy, gRPC and others read it as well:
//
//	endpoint-load-metrics: TEXT application_utilization=0.3,rps_fractional=71,named_metrics.rif=3,named_metrics.service_time=0.012
//
// Reports of other servers are read in any of the three forms, text, JSON and
// binary. What is no number, negative, infinite or beyond reason is left out: a
// report is a hint from outside, and never a reason to fail a call.
//
// A [Server] counts without any transport, so that others than net/http can report
// too; [Report.AppendBinary] and [ParseBinary] are for gRPC's trailer.
package loadreport
