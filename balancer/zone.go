package balancer

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

// ZoneConfig is how calls stay in the zone that they come from. It looks only at
// the most preferred priority that can carry calls.
//
// Where every endpoint says for which zones it is meant (Endpoint.ForZones, the
// hints of Kubernetes), calls keep to those that are meant for this one.
// Otherwise the arithmetic is Envoy's: with enough nodes in the local zone for
// its clients, all calls stay; with fewer, as large a part of them as there are
// nodes for, and the rest goes to the zones that have more than their own clients
// need.
type ZoneConfig struct {
	// Local is the zone that this process runs in. Default: unknown, and zones
	// are ignored.
	Local string `json:"local,omitempty"`
	// Clients is how many clients the service has in each zone, in any measure.
	// Default: as many in each zone where it has nodes.
	Clients map[string]float64 `json:"clients,omitempty"`
	// MinNodes is how many nodes there must be for zones to matter. Negative: one
	// is enough. Default: 6.
	MinNodes int `json:"minNodes,omitempty"`
}

func (c *ZoneConfig) validate() (errs []error) {
	if c.Local == "" && (len(c.Clients) > 0 || c.MinNodes != 0) {
		errs = append(errs, errors.New(`balancer: Zones.Local is "", want the zone that the other settings are about`))
	}
	if share, ok := c.Clients[c.Local]; c.Local != "" && len(c.Clients) > 0 && (!ok || share == 0) {
		errs = append(errs, fmt.Errorf("balancer: Zones.Clients says nothing of Local (%q), want its share as well", c.Local))
	}
	for _, z := range slices.Sorted(maps.Keys(c.Clients)) {
		if !finite(c.Clients[z]) {
			errs = append(errs, fmt.Errorf("balancer: Zones.Clients[%q] is %v, want a finite number >= 0", z, c.Clients[z]))
		}
	}
	return errs
}
