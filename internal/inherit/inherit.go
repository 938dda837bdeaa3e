// Package inherit fills the gaps of one config from another, field by field:
// a route's from its service's, a service's from the defaults.
package inherit

import (
	"reflect"
	"time"
)

// Or returns v as a config means it: 0 stands for the default, and what is
// negative for 0, which is off.
func Or[T int | float64 | time.Duration](v, standard T) T {
	switch {
	case v == 0:
		return standard
	case v < 0:
		return 0
	}
	return v
}

// Of returns child with what it leaves out taken from parent. What a value of
// each kind leaves out, and how the two are put together:
//
//   - a struct whose fields are all exported: each field for itself;
//   - a pointer to such a struct: nil takes the parent's pointer; where both
//     point somewhere, a fresh struct holds the two put together;
//   - a map, slice, func, interface, channel or other pointer: nil takes the
//     parent's, anything else stands whole, also what is empty but not nil;
//   - everything else, structs with unexported fields among it (a time.Time):
//     the zero value takes the parent's.
//
// Neither input is written to. The result shares with them what it took whole:
// maps, slices and pointers.
func Of[T any](child, parent T) T {
	// Through pointers, because T may be an interface.
	fill(reflect.ValueOf(&child).Elem(), reflect.ValueOf(&parent).Elem())
	return child
}

// fill gives the settable dst, a shallow copy of the child, what it lacks.
func fill(dst, parent reflect.Value) {
	switch {
	case isPlain(dst.Type()):
		for i := range dst.NumField() {
			fill(dst.Field(i), parent.Field(i))
		}
	case dst.IsZero():
		dst.Set(parent)
	case dst.Kind() == reflect.Pointer && isPlain(dst.Type().Elem()) && !parent.IsNil():
		both := reflect.New(dst.Type().Elem())
		both.Elem().Set(dst.Elem())
		fill(both.Elem(), parent.Elem())
		dst.Set(both)
	}
}

// isPlain reports whether t is a struct without unexported fields. Others, such
// as an http.Transport or a mutex, must be neither copied nor mixed.
func isPlain(t reflect.Type) bool {
	if t.Kind() != reflect.Struct {
		return false
	}
	for f := range t.Fields() {
		if !f.IsExported() {
			return false
		}
	}
	return true
}
