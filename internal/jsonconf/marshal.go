package jsonconf

import (
	"bytes"
	"cmp"
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"time"
)

// Marshal returns v, a struct or a pointer to one, as JSON that [Unmarshal]
// reads back: fields in their order, the keys of maps sorted.
func Marshal(v any) ([]byte, error) {
	if v == nil {
		return []byte("null"), nil
	}
	var b bytes.Buffer
	if err := write(&b, "", reflect.ValueOf(v)); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func write(b *bytes.Buffer, path string, v reflect.Value) error {
	t, k := v.Type(), v.Kind()
	switch {
	case t == reflect.TypeFor[time.Duration]():
		return writeScalar(b, path, time.Duration(v.Int()).String())
	case isScalar(k) || has[encoding.TextMarshaler](t) || path != "" && has[json.Marshaler](t):
		p := reflect.New(t) // because the methods may have pointer receivers
		p.Elem().Set(v)
		return writeScalar(b, path, p.Interface())
	case (k == reflect.Pointer || k == reflect.Slice || k == reflect.Map) && v.IsNil():
		return writeScalar(b, path, nil)
	case k == reflect.Pointer:
		return write(b, path, v.Elem())
	case k == reflect.Slice:
		b.WriteByte('[')
		for i := range v.Len() {
			if i > 0 {
				b.WriteByte(',')
			}
			if err := write(b, element(path, i), v.Index(i)); err != nil {
				return err
			}
		}
		b.WriteByte(']')
		return nil
	case k == reflect.Struct, k == reflect.Map && t.Key().Kind() == reflect.String:
		b.WriteByte('{')
		for i, m := range members(v) {
			if i > 0 {
				b.WriteByte(',')
			}
			if err := writeScalar(b, path, m.name); err != nil {
				return err
			}
			b.WriteByte(':')
			if err := write(b, member(path, m.name), m.value); err != nil {
				return err
			}
		}
		b.WriteByte('}')
		return nil
	default:
		return fmt.Errorf("config: %s is a %s, which has no form in JSON", path, t)
	}
}

// writeScalar leaves v to encoding/json.
func writeScalar(b *bytes.Buffer, path string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("config: %s: %w", path, err)
	}
	b.Write(text)
	return nil
}

type namedValue struct {
	name  string
	value reflect.Value
}

// members lists what is to be written of a struct or a map with string keys.
func members(v reflect.Value) []namedValue {
	var list []namedValue
	if v.Kind() == reflect.Map {
		for key, value := range v.Seq2() {
			list = append(list, namedValue{key.String(), value})
		}
		slices.SortFunc(list, func(a, b namedValue) int { return cmp.Compare(a.name, b.name) })
		return list
	}
	for _, f := range fieldsOf(v.Type()) {
		if value := v.FieldByIndex(f.index); !f.omit || !value.IsZero() {
			list = append(list, namedValue{f.name, value})
		}
	}
	return list
}
