// Package jsonconf reads plain config structs from JSON and writes them to it.
//
// It differs from encoding/json where a file that people edit calls for it:
//
//   - a [time.Duration] is a string such as "250ms", never a number;
//   - unknown and repeated fields are refused, and names are compared exactly;
//   - every problem is reported, not the first alone, with the path to the
//     field, the value and what was wanted;
//   - a value with problems changes nothing;
//   - null is the same as leaving the field out;
//   - omitempty leaves out zero values only, structs among them: an empty list
//     that is not nil is written, because it says something else than none.
//
// Only exported fields with a json tag take part; those of an embedded struct
// without a tag count as its owner's. Types with methods of their own for text
// or JSON keep them, except for JSON's on the outermost value: so a config can
// implement json.Marshaler and json.Unmarshaler with this package and covers
// everything inside it.
package jsonconf

import (
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// has reports whether values of type t have the methods of the interface I,
// with either kind of receiver.
func has[I any](t reflect.Type) bool { return reflect.PointerTo(t).Implements(reflect.TypeFor[I]()) }

// isScalar reports whether encoding/json does with kind k all that is wanted.
func isScalar(k reflect.Kind) bool {
	return k >= reflect.Bool && k <= reflect.Float64 || k == reflect.String
}

// field is a part of a struct that has a name in JSON.
type field struct {
	name  string
	index []int
	omit  bool // left out when zero
}

// fieldsOf lists the fields of the struct type t in their order.
func fieldsOf(t reflect.Type) []field {
	var fields []field
	for f := range t.Fields() {
		tag, tagged := f.Tag.Lookup("json")
		name, options, _ := strings.Cut(tag, ",")
		switch {
		case f.Anonymous && !tagged && f.Type.Kind() == reflect.Struct:
			for _, inner := range fieldsOf(f.Type) {
				inner.index = slices.Concat(f.Index, inner.index)
				fields = append(fields, inner)
			}
		case f.IsExported() && name != "" && tag != "-":
			fields = append(fields, field{name, f.Index, strings.HasPrefix(options, "omit")})
		}
	}
	return fields
}

// member appends the name of a struct's field or of a map's key to path.
func member(path, name string) string {
	special := func(r rune) bool {
		return !strings.ContainsRune("-_0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", r)
	}
	switch {
	case name == "" || strings.ContainsFunc(name, special):
		return path + "[" + strconv.Quote(name) + "]"
	case path == "":
		return name
	default:
		return path + "." + name
	}
}

func element(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }
