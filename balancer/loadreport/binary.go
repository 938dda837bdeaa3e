package loadreport

import (
	"encoding/binary"
	"math"
)

// The binary form is the protobuf message xds.data.orca.v3.OrcaLoadReport. It is
// written and read here by hand, for a dozen lines do what would take a dependency.

// fieldNames are the message's fields of type double, by number; the others are "".
func fieldNames() [10]string {
	return [...]string{1: nameCPU, 2: nameMem, 6: nameRPS, 7: nameEPS, 9: nameApplication}
}

const fieldNamed = 8 // map<string, double>

// The wire types of protobuf.
const (
	wireVarint = 0
	wire64     = 1
	wireBytes  = 2
	wire32     = 5
)

// AppendBinary appends the report to b as a protobuf message, which is what gRPC
// expects in the trailer endpoint-load-metrics-bin.
func (r *Report) AppendBinary(b []byte) ([]byte, error) {
	r.each(func(name string, v float64) {
		if len(name) > len(prefixNamed) && name[:len(prefixNamed)] == prefixNamed {
			key := name[len(prefixNamed):]
			b = append(b, fieldNamed<<3|wireBytes, byte(2+len(key)+9), 1<<3|wireBytes, byte(len(key))) // short: see validName
			b = append(b, key...)
			b = appendDouble(b, 2, v)
			return
		}
		for number, known := range fieldNames() {
			if known == name {
				b = appendDouble(b, number, v)
			}
		}
	})
	return b, nil
}

func appendDouble(b []byte, field int, v float64) []byte {
	return binary.LittleEndian.AppendUint64(append(b, byte(field<<3|wire64)), math.Float64bits(v))
}

// ParseBinary reads a report from a protobuf message. It is false if there is none
// in it; what follows a mistake in the message is not read.
func ParseBinary(data []byte) (r Report, ok bool) {
	if len(data) > maxLength {
		return Report{}, false
	}
	left := maxMetrics
	fromBinary(data, func(name string, v float64) bool {
		r.set(name, v)
		left--
		return left > 0
	})
	ok = r.says()
	return r, ok
}

func fromBinary(data []byte, say func(string, float64) bool) {
	names := fieldNames()
	for len(data) > 0 {
		field, wire, value, rest := nextField(data)
		if rest == nil {
			return
		}
		data = rest
		name := ""
		switch {
		case wire == wire64 && field < uint64(len(names)):
			name = names[field]
		case wire == wireBytes && field == fieldNamed:
			name, value = mapEntry(value)
		}
		if name != "" && value != nil && !say(name, double(value)) {
			return
		}
	}
}

// mapEntry reads an entry of named_metrics: its name, and the value's eight bytes.
func mapEntry(data []byte) (name string, value []byte) {
	for len(data) > 0 {
		field, wire, v, rest := nextField(data)
		if rest == nil {
			return "", nil
		}
		data = rest
		switch {
		case field == 1 && wire == wireBytes:
			name = prefixNamed + string(v)
		case field == 2 && wire == wire64:
			value = v
		}
	}
	return name, value
}

func double(b []byte) float64 { return math.Float64frombits(binary.LittleEndian.Uint64(b)) }

// nextField reads a field and returns its number, wire type and bytes, and what
// follows; a nil rest means that the message is broken. Of numbers it skips those
// that are varints.
func nextField(data []byte) (field, wire uint64, value, rest []byte) {
	tag, n := binary.Uvarint(data)
	if n <= 0 {
		return 0, 0, nil, nil
	}
	data = data[n:]
	field, wire = tag>>3, tag&7
	length := uint64(0)
	switch wire {
	case wireVarint:
		if _, n = binary.Uvarint(data); n <= 0 {
			return 0, 0, nil, nil
		}
		length = uint64(n)
	case wire64:
		length = 8
	case wire32:
		length = 4
	case wireBytes:
		if length, n = binary.Uvarint(data); n <= 0 {
			return 0, 0, nil, nil
		}
		data = data[n:]
	default:
		return 0, 0, nil, nil
	}
	if length > uint64(len(data)) {
		return 0, 0, nil, nil
	}
	return field, wire, data[:length], data[length:]
}
