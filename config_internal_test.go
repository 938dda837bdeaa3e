package backstay

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/event"
)

// fill gives every field that JSON has a value of its own, and every function
// and interface that can be made up too if all is set.
func fill(v reflect.Value, n *int, all bool) {
	*n++
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).Tag.Get("json") != "-" || all {
				fill(v.Field(i), n, all)
			}
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for _, key := range []string{"orders", "users"} {
			value := reflect.New(v.Type().Elem()).Elem()
			fill(value, n, all)
			v.SetMapIndex(reflect.ValueOf(key), value)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(v.Index(i), n, all)
		}
	case reflect.String:
		v.SetString(fmt.Sprint("v", *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*n) * int64(time.Millisecond))
	case reflect.Uint8: // a Switch
		v.SetUint(uint64(On) + uint64(*n%2))
	case reflect.Float64:
		v.SetFloat(float64(*n) + 0.5)
	case reflect.Func:
		v.Set(reflect.MakeFunc(v.Type(), func([]reflect.Value) []reflect.Value { panic("not called") }))
	case reflect.Interface:
		for _, value := range []any{discovery.Static(), &balancer.P2C{}, event.ObserverFunc(nil), http.DefaultTransport} {
			if reflect.TypeOf(value).Implements(v.Type()) {
				v.Set(reflect.ValueOf(value))
			}
		}
	default: // left alone
	}
}

// filled is a Config in which everything that JSON has is set.
func filled() Config {
	var c Config
	n := 0
	fill(reflect.ValueOf(&c).Elem(), &n, false)
	return c
}

func TestEveryRouteFieldIsAServicesFieldThatRouteCopies(t *testing.T) {
	var s Service
	n := 0
	fill(reflect.ValueOf(&s).Elem(), &n, true)
	copied := reflect.ValueOf(s.route())
	for field := range reflect.TypeFor[Route]().Fields() {
		t.Run(field.Name, func(t *testing.T) {
			of, ok := reflect.TypeFor[Service]().FieldByName(field.Name)
			require.True(t, ok, "Service has it too")
			require.Equal(t, of.Type, field.Type)
			require.Equal(t, of.Tag, field.Tag)
			requireSame(t, reflect.ValueOf(s).FieldByName(field.Name), copied.FieldByIndex(field.Index))
		})
	}
}

// requireSame is require.Equal that compares functions by their address.
func requireSame(t *testing.T, want, got reflect.Value) {
	t.Helper()
	require.False(t, got.IsZero() && !want.IsZero())
	switch want.Kind() {
	case reflect.Func:
		require.Equal(t, want.Pointer(), got.Pointer())
	case reflect.Struct:
		for i := range want.NumField() {
			requireSame(t, want.Field(i), got.Field(i))
		}
	case reflect.Interface:
		requireSame(t, want.Elem(), got.Elem())
	case reflect.Slice:
		require.Equal(t, want.Len(), got.Len())
		for i := range want.Len() {
			requireSame(t, want.Index(i), got.Index(i))
		}
	default:
		require.Equal(t, want.Interface(), got.Interface())
	}
}

// leaves calls do for each field below v that is no struct itself.
func leaves(path string, v reflect.Value, do func(path string, v reflect.Value)) {
	if v.Kind() != reflect.Struct {
		do(path, v)
		return
	}
	for i := range v.NumField() {
		leaves(path+"."+v.Type().Field(i).Name, v.Field(i), do)
	}
}

func TestServiceInheritsFieldByFieldFromDefault(t *testing.T) {
	var of Service
	n := 0
	fill(reflect.ValueOf(&of).Elem(), &n, true)
	leaves("Service", reflect.ValueOf(of), func(path string, want reflect.Value) {
		t.Run(path, func(t *testing.T) {
			at := func(s *Service) (found reflect.Value) {
				leaves("Service", reflect.ValueOf(s).Elem(), func(p string, v reflect.Value) {
					if p == path {
						found = v
					}
				})
				return found
			}
			var standard, own Service
			if strings.HasPrefix(path, "Service.HashKey") {
				standard.Policy = balancer.Rendezvous{} // another one has no use for it
			}
			at(&standard).Set(want)
			c := &Config{Default: standard, Services: map[string]Service{"bare": {}}}
			for _, name := range []string{"bare", "bare:8080", "unlisted"} {
				s := c.service(name)
				requireSame(t, want, at(&s))
			}
			at(&own).Set(other(want))
			c.Services["own"] = own
			s := c.service("own")
			requireSame(t, other(want), at(&s))
		})
	})
}

// other is a value that is neither v nor zero.
func other(v reflect.Value) reflect.Value {
	o := reflect.New(v.Type()).Elem()
	n := 1000
	fill(o, &n, true)
	if slices.Contains([]reflect.Kind{reflect.Bool, reflect.Uint8, reflect.Interface}, v.Kind()) {
		return v // there is no other
	}
	return o
}

func TestConfigReadsBackWhatItWrites(t *testing.T) {
	for name, want := range map[string]Config{"zero": {}, "everything": filled()} {
		t.Run(name, func(t *testing.T) {
			text, err := json.Marshal(want)
			require.NoError(t, err)
			var got Config
			require.NoError(t, json.Unmarshal(text, &got))
			require.Equal(t, want, got)
			again, err := json.Marshal(&got)
			require.NoError(t, err)
			require.Equal(t, string(text), string(again))
		})
	}
}
