package balancer

import (
	"cmp"
	"math"
	"slices"
)

// judged is a node with its state of the moment, and until when at the latest it
// has it; zero where that is not a matter of time.
type judged struct {
	*Node
	state NodeState
	found NodeState // what it would be if anything were done about it
	until int64
}

// group is nodes that one picker chooses from.
type group struct {
	nodes  []*Node
	picker Picker
	peak   *p2cPeakEWMA // the same, if it is the default's: see choose
	share  float64      // of the calls
	until  uint64       // the upper end of its share, of shareUnit
}

const shareUnit = 1 << 32

// level is the nodes of one priority.
type level struct {
	priority, total   int // of them all
	well, bad         []*Node
	probing, draining int
}

// levels are sorted, the most preferred first.
type levels []*level

// at returns the level of a priority, a new one if need be.
func (ls *levels) at(priority int) *level {
	i, ok := slices.BinarySearchFunc(*ls, priority, func(l *level, p int) int { return cmp.Compare(l.priority, p) })
	if !ok {
		*ls = slices.Insert(*ls, i, &level{priority: priority})
	}
	return (*ls)[i]
}

func (ls levels) well() (all []*Node) {
	for _, l := range ls {
		all = append(all, l.well...)
	}
	return all
}

// ok returns how many nodes panic mode counts as well.
func (l *level) ok() int { return len(l.well) + l.probing + l.draining }

// carries returns what part of the calls the level can bear.
func (l *level) carries(overprovisioning float64) float64 {
	if len(l.well) == 0 {
		return 0
	}
	return min(1, overprovisioning*float64(len(l.well))/float64(l.total-l.draining))
}

// arrange makes the snapshot of some of the nodes, with the pickers of old where
// they would be the same. b.mu is held.
func (b *Balancer) arrange(nodes []judged, old *snapshot, fresh bool) *snapshot {
	s := new(snapshot)
	var levels levels
	var draining, unchecked []*Node
	var l *level
	for _, n := range nodes {
		if n.state == Unhealthy && n.sick.kind == notChecked {
			unchecked = append(unchecked, n.Node) // not yet one of those that count
			continue
		}
		if p := n.endpoint.Load().Priority; l == nil || l.priority != p {
			l = levels.at(p)
		}
		l.total++
		switch n.state {
		case Open:
			if s.earliest == nil || n.until < s.nextTry {
				s.earliest, s.nextTry = n.Node, n.until
			}
			s.refusing = append(s.refusing, n.Node)
		case HalfOpen:
			s.probing = append(s.probing, n.Node)
			l.probing++
		case Ejected, Unhealthy:
			l.bad = append(l.bad, n.Node)
		case Draining:
			draining = append(draining, n.Node)
			l.draining++
		default:
			l.well = append(l.well, n.Node)
		}
	}
	b.panicIn(levels, s)
	if s.closed {
		s.probing, s.refusing = nil, nil
		return s
	}
	for _, l := range levels {
		s.bad = append(s.bad, l.bad...)
	}
	if b.cfg.Outliers.Probe > 0 {
		for _, l := range levels {
			for _, n := range l.bad {
				if n.unwell.Load()&probation != 0 && !n.unhealthy.Load() {
					s.ejected = append(s.ejected, n)
				}
			}
		}
	}
	well := levels.well()
	for _, others := range [...][]*Node{draining, unchecked} { // better those than nobody
		if len(well) > 0 {
			break
		}
		levels = nil
		for _, n := range others {
			l := levels.at(n.endpoint.Load().Priority)
			l.total++
			l.well = append(l.well, n)
		}
		well = others
	}
	groups := b.share(nodes, levels)
	for i := range groups {
		g := &groups[i]
		s.eligible = append(s.eligible, g.nodes...)
		if was := old.grouped(g.nodes); was != nil && !fresh {
			g.nodes, g.picker, g.peak = was.nodes, was.picker, was.peak
			continue
		}
		g.picker = b.newPicker(g.nodes)
		g.peak, _ = g.picker.(*p2cPeakEWMA)
	}
	if len(s.eligible) < len(well) {
		inUse := make(map[*Node]bool, len(s.eligible))
		for _, n := range s.eligible {
			inUse[n] = true
		}
		for _, n := range well {
			if !inUse[n] {
				s.standby = append(s.standby, n)
			}
		}
	}
	if len(groups) > 0 {
		s.group = groups[0]
	}
	if len(groups) > 1 {
		s.groups = cumulate(groups)
	}
	return s
}

// grouped returns the group of s that consists of nodes, in that order; nil if
// there is none.
func (s *snapshot) grouped(nodes []*Node) *group {
	if s == nil {
		return nil
	}
	for i := range s.groups {
		if slices.Equal(s.groups[i].nodes, nodes) {
			return &s.groups[i]
		}
	}
	if s.picker != nil && slices.Equal(s.nodes, nodes) {
		return &s.group
	}
	return nil
}

// cumulate sets the groups' bounds from their shares.
func cumulate(groups []group) []group {
	total, sum := 0.0, 0.0
	for i := range groups {
		total += groups[i].share
	}
	for i := range groups {
		sum += groups[i].share
		groups[i].until = uint64(sum / total * shareUnit)
	}
	groups[len(groups)-1].until = shareUnit
	return groups
}

// draw returns the group that a number of 32 bits falls to.
func (s *snapshot) draw(at uint64) *group {
	for i := range s.groups {
		if at < s.groups[i].until {
			return &s.groups[i]
		}
	}
	return &s.groups[len(s.groups)-1]
}

// panicIn ignores ejections and health checks in the levels that have too few nodes
// left, if what is well of all levels cannot bear the calls. FailClosed takes such
// levels out instead.
func (b *Balancer) panicIn(levels levels, s *snapshot) {
	capacity := 0.0
	for _, l := range levels {
		capacity += l.carries(b.cfg.Overprovisioning)
	}
	if capacity >= 1 && len(levels) > 1 {
		return // the next priority takes over
	}
	left := 0
	for _, l := range levels {
		if len(l.bad) > 0 && float64(l.ok()) < b.cfg.PanicThreshold*float64(l.total) {
			s.panicking = true
			if b.cfg.FailClosed {
				l.well = nil
			} else {
				l.well, l.bad = append(l.well, l.bad...), nil
			}
		}
		left += len(l.well)
	}
	s.closed = s.panicking && left == 0
}

// share divides the calls among the nodes that are well: by priority, and within
// the first priority that can carry any by zone. Groups without a share are left
// out.
//
// Each priority gets what it can carry, the most preferred first: with
// Overprovisioning 1.4 it carries everything while 72 % of its nodes are well. If
// none is left to take the rest, each gets more in proportion. This is Envoy's
// arithmetic.
func (b *Balancer) share(all []judged, levels levels) []group {
	var groups []group
	rest := 1.0
	for _, l := range levels {
		if len(l.well) == 0 {
			continue
		}
		carries := min(rest, l.carries(b.cfg.Overprovisioning))
		if groups == nil {
			groups = b.byZone(all, l.well, carries)
		} else {
			groups = append(groups, group{nodes: l.well, share: carries})
		}
		if rest -= carries; rest < 1e-9 {
			break
		}
	}
	return groups
}

// byZone keeps the calls in the zone that this process runs in, as far as it has
// the nodes for it: see ZoneConfig.
func (b *Balancer) byZone(all []judged, nodes []*Node, share float64) []group {
	local := b.cfg.Zones.Local
	one := []group{{nodes: nodes, share: share}}
	if local == "" {
		return one
	}
	if hinted, ok := b.byHint(all, nodes, share); ok {
		return hinted
	}
	if len(nodes) < b.cfg.Zones.MinNodes {
		return one
	}
	var zones []string
	in := make(map[string][]*Node)
	for _, n := range nodes {
		z := n.endpoint.Load().Zone
		if in[z] == nil {
			zones = append(zones, z)
		}
		in[z] = append(in[z], n)
	}
	if len(in[local]) == 0 || len(zones) == 1 {
		return one
	}
	capacity := func(z string) float64 { return float64(len(in[z])) / float64(len(nodes)) }
	clients := b.cfg.Zones.clients(zones)
	stays := 1.0
	if want := clients[local]; capacity(local) < want {
		stays = capacity(local) / want
	}
	groups := []group{{nodes: in[local], share: share * stays}}
	spare := 0.0
	for _, z := range zones {
		if z != local {
			spare += max(0, capacity(z)-clients[z])
		}
	}
	if stays == 1 || spare == 0 {
		return groups
	}
	for _, z := range zones {
		if free := max(0, capacity(z)-clients[z]); z != local && free > 0 {
			groups = append(groups, group{nodes: in[z], share: share * (1 - stays) * free / spare})
		}
	}
	return groups
}

// byHint keeps to the nodes that the source means for this zone, if it says so of
// every node, as kube-proxy does. Unlike there, calls go to the others as well
// when too few of those that are meant are left.
func (b *Balancer) byHint(all []judged, well []*Node, share float64) ([]group, bool) {
	local := b.cfg.Zones.Local
	meant, total := 0, 0
	for _, n := range all {
		e := n.endpoint.Load()
		if e.Priority != well[0].endpoint.Load().Priority || e.Draining {
			continue
		}
		if len(e.ForZones) == 0 {
			return nil, false
		}
		total++
		if slices.Contains(e.ForZones, local) {
			meant++
		}
	}
	if meant == 0 || meant == total {
		return nil, false
	}
	var ours, others []*Node
	for _, n := range well {
		if slices.Contains(n.endpoint.Load().ForZones, local) {
			ours = append(ours, n)
		} else {
			others = append(others, n)
		}
	}
	stays := min(1, b.cfg.Overprovisioning*float64(len(ours))/float64(meant))
	var groups []group
	if len(ours) > 0 {
		groups = append(groups, group{nodes: ours, share: share * stays})
	}
	if stays < 1 && len(others) > 0 {
		groups = append(groups, group{nodes: others, share: share * (1 - stays)})
	}
	return groups, true
}

// clients returns each zone's share of the clients.
func (c *ZoneConfig) clients(zones []string) map[string]float64 {
	shares := make(map[string]float64, len(zones))
	total := 0.0
	for _, share := range c.Clients {
		total += share
	}
	if total > 0 {
		for z, share := range c.Clients {
			shares[z] = share / total
		}
		return shares
	}
	for _, z := range zones {
		shares[z] = 1 / float64(len(zones))
	}
	return shares
}

// finite reports whether f is a number, and not below 0.
func finite(f float64) bool { return f >= 0 && !math.IsInf(f, 0) }
