package loadreport

import (
	"encoding/base64"
	"encoding/json"
	"iter"
	"strconv"
	"strings"
)

// Header is the name of the response header.
const Header = "Endpoint-Load-Metrics"

// The forms of the header's value, as it begins with them.
const (
	formText   = "TEXT "
	formJSON   = "JSON "
	formBinary = "BIN "
)

// What is longer, or says more, is not read: it comes from outside.
const (
	maxLength  = 4096
	maxMetrics = 64
)

// Parse reads a report from a header's value, in any of ORCA's forms. It is false if
// there is none in it. What makes no sense is left out, and if a metric comes more
// than once, the last counts. Text is read without an allocation.
func Parse(value string) (r Report, ok bool) {
	if len(value) > maxLength {
		return Report{}, false
	}
	switch {
	case strings.HasPrefix(value, formText):
		text := value[len(formText):]
		for range maxMetrics {
			if text == "" {
				break
			}
			var name string
			var v float64
			if name, v, text = next(text); name != "" {
				r.set(name, v)
			}
		}
	case strings.HasPrefix(value, formJSON), strings.HasPrefix(value, formBinary):
		for name, v := range Metrics(value) {
			r.set(name, v)
		}
	}
	ok = r.says()
	return r, ok
}

func (r *Report) says() bool {
	return r.Utilization() > 0 || r.MemUtilization > 0 || r.RPS > 0 || r.EPS > 0 || r.InFlight > 0 || r.ServiceTime > 0
}

// Metrics yields what a header's value says, each metric by its full name, such as
// "cpu_utilization" and "named_metrics.rif". Values are finite and not negative.
func Metrics(value string) iter.Seq2[string, float64] {
	return func(yield func(string, float64) bool) {
		if len(value) > maxLength {
			return
		}
		left := maxMetrics
		say := func(name string, v float64) bool {
			left--
			return name == "" || !valid(v) || yield(name, v) && left > 0
		}
		if text, ok := strings.CutPrefix(value, formText); ok {
			for text != "" && left > 0 {
				var name string
				var v float64
				if name, v, text = next(text); !say(name, v) {
					return
				}
			}
		} else if text, ok := strings.CutPrefix(value, formJSON); ok {
			fromJSON(text, say)
		} else if text, ok := strings.CutPrefix(value, formBinary); ok {
			if data, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text)); err == nil {
				fromBinary(data, say)
			}
		}
	}
}

// next reads one metric of a text, and returns what is left of the text. The name
// is "" if there is none.
func next(text string) (name string, v float64, rest string) {
	metric, rest, _ := strings.Cut(text, ",")
	end := strings.IndexAny(metric, "=:")
	if end < 0 {
		return "", 0, rest
	}
	number := strings.TrimSpace(metric[end+1:])
	if number == "" || len(number) > 32 || number[0] == '-' {
		return "", 0, rest
	}
	v, err := strconv.ParseFloat(number, 64)
	if err != nil || !valid(v) {
		return "", 0, rest
	}
	return strings.TrimSpace(metric[:end]), v, rest
}

// fromJSON reads the message's JSON form: the fields by their names in the schema or
// in camel case.
func fromJSON(text string, say func(string, float64) bool) {
	var fields struct {
		App      number            `json:"application_utilization"`
		CPU      number            `json:"cpu_utilization"`
		Mem      number            `json:"mem_utilization"`
		RPS      number            `json:"rps_fractional"`
		EPS      number            `json:"eps"`
		Named    map[string]number `json:"named_metrics"`
		AppCamel number            `json:"applicationUtilization"`
		CPUCamel number            `json:"cpuUtilization"`
		MemCamel number            `json:"memUtilization"`
		RPSCamel number            `json:"rpsFractional"`
		AllCamel map[string]number `json:"namedMetrics"`
	}
	if json.Unmarshal([]byte(text), &fields) != nil {
		return
	}
	for _, f := range [...]struct {
		name string
		v    number
	}{
		{nameApplication, fields.App + fields.AppCamel},
		{nameCPU, fields.CPU + fields.CPUCamel},
		{nameMem, fields.Mem + fields.MemCamel},
		{nameRPS, fields.RPS + fields.RPSCamel},
		{nameEPS, fields.EPS},
	} {
		if f.v != 0 && !say(f.name, float64(f.v)) {
			return
		}
	}
	for _, all := range [...]map[string]number{fields.Named, fields.AllCamel} {
		for name, v := range all {
			if name != "" && !say(prefixNamed+name, float64(v)) {
				return
			}
		}
	}
}

// number is one as protobuf writes it in JSON: a number or a string of one.
type number float64

// UnmarshalJSON takes what is no number for 0.
func (n *number) UnmarshalJSON(data []byte) error {
	v, err := strconv.ParseFloat(strings.Trim(string(data), `"`), 64)
	if err == nil && valid(v) {
		*n = number(v)
	}
	return nil
}
