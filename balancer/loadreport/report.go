package loadreport

import (
	"bytes"
	"maps"
	"math"
	"slices"
	"strconv"
	"time"
)

// Report is what a server says of its load: the fields of ORCA
// (xds.data.orca.v3.OrcaLoadReport) that say how busy it is, and two that C3
// (Suresh et al., NSDI 2015) goes by. Zero means that nothing is said.
type Report struct {
	// ApplicationUtilization is the share of its capacity that the server uses, by
	// a measure of its own. It may exceed 1.
	ApplicationUtilization float64
	// CPUUtilization is the share of the processors that is used. It may exceed 1.
	CPUUtilization float64
	// MemUtilization is the share of the memory that is used, at most 1.
	MemUtilization float64
	// RPS is the rate at which requests are answered, per second.
	RPS float64
	// EPS is the rate at which they fail, per second.
	EPS float64
	// InFlight is the number of requests that the server has, besides the one that
	// it answers with the report: the named metric rif.
	InFlight float64
	// ServiceTime is how long a request takes until it is answered: the named
	// metric service_time, in seconds.
	ServiceTime time.Duration
	// Named are metrics of the server's own. Parsing leaves them out; [Metrics]
	// has them.
	Named map[string]float64
}

// Utilization is what gRFC A58 takes for the server's: the application's if it says
// so, else the processors'.
func (r *Report) Utilization() float64 {
	if r.ApplicationUtilization > 0 {
		return r.ApplicationUtilization
	}
	return r.CPUUtilization
}

// The names of the metrics, as they are written.
const (
	nameApplication = "application_utilization"
	nameCPU         = "cpu_utilization"
	nameMem         = "mem_utilization"
	nameRPS         = "rps_fractional"
	nameEPS         = "eps"
	prefixNamed     = "named_metrics."
	nameInFlight    = "rif"
	nameServiceTime = "service_time"
)

// What no server can mean is left out.
const (
	maxUtilization = 1000
	maxRate        = 1e9
	maxInFlight    = 1e6
	maxServiceTime = 3600 // seconds
)

// valid reports whether v is a number that a metric may have.
func valid(v float64) bool { return v >= 0 && v <= math.MaxFloat64 }

// set takes a metric into the report, if it belongs there.
func (r *Report) set(name string, v float64) {
	field, most := &r.ApplicationUtilization, float64(maxUtilization)
	switch name {
	case nameApplication:
	case nameCPU:
		field = &r.CPUUtilization
	case nameMem:
		field, most = &r.MemUtilization, 1
	case nameRPS:
		field, most = &r.RPS, maxRate
	case nameEPS:
		field, most = &r.EPS, maxRate
	case prefixNamed + nameInFlight:
		field, most = &r.InFlight, maxInFlight
	case prefixNamed + nameServiceTime:
		if valid(v) && v <= maxServiceTime {
			r.ServiceTime = time.Duration(v * float64(time.Second))
		}
		return
	default:
		return
	}
	if valid(v) && v <= most {
		*field = v
	}
}

// each calls yield with what the report says, in the order of writing.
func (r *Report) each(yield func(name string, v float64)) {
	say := func(name string, v float64) {
		if v > 0 && valid(v) {
			yield(name, v)
		}
	}
	say(nameApplication, r.ApplicationUtilization)
	say(nameCPU, r.CPUUtilization)
	say(nameMem, r.MemUtilization)
	say(nameRPS, r.RPS)
	say(nameEPS, r.EPS)
	if r.ServiceTime > 0 {
		yield(prefixNamed+nameInFlight, max(r.InFlight, 0)) // none is said, too
		yield(prefixNamed+nameServiceTime, r.ServiceTime.Seconds())
	} else {
		say(prefixNamed+nameInFlight, r.InFlight)
	}
	if len(r.Named) == 0 {
		return
	}
	said := 0
	for _, name := range slices.Sorted(maps.Keys(r.Named)) {
		if v := r.Named[name]; said < maxMetrics/2 && validName(name) && valid(v) {
			yield(prefixNamed+name, v)
			said++
		}
	}
}

// validName reports whether a metric may be called so: anything else could break
// the header.
func validName(name string) bool {
	if name == "" || len(name) > 64 || name == nameInFlight || name == nameServiceTime {
		return false
	}
	for i := range len(name) {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '-', c == '.', c == '/':
		default:
			return false
		}
	}
	return true
}

// AppendText appends the report to b as the header's value. Of Named it leaves out
// what is no name of letters, digits and "_-./", what is no number of 0 or more, and
// what is too much.
func (r *Report) AppendText(b []byte) ([]byte, error) {
	b = append(b, formText...)
	sep := false
	r.each(func(name string, v float64) {
		if sep {
			b = append(b, ',')
		}
		sep = true
		b = append(append(b, name...), '=')
		b = appendNumber(b, v)
	})
	return b, nil
}

// String returns the header's value.
func (r Report) String() string {
	b, _ := r.AppendText(make([]byte, 0, 160))
	return string(b)
}

// appendNumber writes at most six decimals, and no exponent: not every reader would
// understand one.
func appendNumber(b []byte, v float64) []byte {
	b = strconv.AppendFloat(b, v, 'f', 6, 64)
	return bytes.TrimSuffix(bytes.TrimRight(b, "0"), []byte("."))
}
