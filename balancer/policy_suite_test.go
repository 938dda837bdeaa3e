package balancer_test

import (
	"testing"
	"time"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
)

func TestPoliciesKeepTheirContract(t *testing.T) {
	for name, c := range map[string]struct {
		policy balancer.Policy
		opts   backstaytest.PolicyOptions
	}{
		"P2C":                  {balancer.P2C{}, backstaytest.PolicyOptions{}},
		"P2C peak EWMA":        {balancer.P2C{Cost: &balancer.PeakEWMA{}}, backstaytest.PolicyOptions{}},
		"P2C in flight":        {balancer.P2C{Cost: balancer.InFlight{}}, backstaytest.PolicyOptions{}},
		"P2C own cost":         {balancer.P2C{Cost: costFunc(func(n *balancer.Node, _ time.Time) float64 { return float64(n.Awaiting()) })}, backstaytest.PolicyOptions{}},
		"round robin":          {balancer.RoundRobin{}, backstaytest.PolicyOptions{}},
		"random":               {balancer.Random{}, backstaytest.PolicyOptions{}},
		"rendezvous":           {balancer.Rendezvous{}, backstaytest.PolicyOptions{}},
		"maglev":               {balancer.Maglev{}, backstaytest.PolicyOptions{}},
		"weighted round robin": {balancer.WeightedRoundRobin{}, backstaytest.PolicyOptions{Weighted: true}},
		"reported weights":     {balancer.WeightedRoundRobin{Reported: true}, backstaytest.PolicyOptions{Weighted: true}},
		"P2C load report":      {balancer.P2C{Cost: &balancer.LoadReport{}}, backstaytest.PolicyOptions{}},
		"least request":        {balancer.LeastRequest{}, backstaytest.PolicyOptions{}},
	} {
		t.Run(name, func(t *testing.T) {
			c.opts.Patience = time.Minute // the machine may have something else to do
			backstaytest.TestPolicy(t, c.policy, &c.opts)
		})
	}
}
