package call

import "time"

// What the entry knows of a call's settings and layers below keep to.

// SetAttemptTimeout sets how long one attempt may take from the request written
// to the response's headers; 0 or less is no limit. The innermost layer that
// sends attempts enforces it.
func (f *Frame) SetAttemptTimeout(d time.Duration) {
	if f == nil {
		return
	}
	f.lock()
	f.attemptTimeout = max(d, 0)
	f.unlock()
}

// AttemptTimeout returns what SetAttemptTimeout set; 0 is no limit.
func (f *Frame) AttemptTimeout() time.Duration {
	if f == nil {
		return 0
	}
	f.lock()
	timeout := f.attemptTimeout
	f.unlock()
	return timeout
}

// SetBodyIdle sets how long a Read of the response's body may wait for more of it;
// 0 or less is no limit. The innermost layer that sends attempts enforces it.
func (f *Frame) SetBodyIdle(d time.Duration) {
	if f == nil {
		return
	}
	f.lock()
	f.bodyIdle = max(d, 0)
	f.unlock()
}

// BodyIdle returns what SetBodyIdle set; 0 is no limit.
func (f *Frame) BodyIdle() time.Duration {
	if f == nil {
		return 0
	}
	f.lock()
	idle := f.bodyIdle
	f.unlock()
	return idle
}

// SetLatencyNeutral keeps the call's latency from counting: for long polls.
func (f *Frame) SetLatencyNeutral(neutral bool) {
	if f == nil {
		return
	}
	f.lock()
	f.latencyNeutral = neutral
	f.unlock()
}

// LatencyNeutral returns what SetLatencyNeutral set.
func (f *Frame) LatencyNeutral() bool {
	if f == nil {
		return false
	}
	f.lock()
	neutral := f.latencyNeutral
	f.unlock()
	return neutral
}

// SetSubset names the subset of the service's nodes that the call goes to; "" is
// all of them.
func (f *Frame) SetSubset(subset string) {
	if f == nil {
		return
	}
	f.lock()
	f.subset = subset
	f.unlock()
}

// Subset returns what SetSubset set.
func (f *Frame) Subset() string {
	if f == nil {
		return ""
	}
	f.lock()
	subset := f.subset
	f.unlock()
	return subset
}
