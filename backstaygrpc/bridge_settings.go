package backstaygrpc

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/serviceconfig"

	"github.com/backstay/backstay/balancer"
)

// settings is what a service config says of the bridge: see [Name].
type settings struct {
	serviceconfig.LoadBalancingConfig

	raw      string
	empty    bool
	bridge   BridgeConfig
	balancer balancer.Config
}

// parseSettings reads them, strictly: a mistake that is ignored would show on the day
// that the setting is needed.
func parseSettings(data []byte) (*settings, error) {
	s := &settings{raw: string(data)}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(data, &fields); err != nil {
		return nil, fmt.Errorf("backstaygrpc: the settings are %s, want an object", data)
	}
	s.empty = len(fields) == 0
	policy, others := fields["policy"], make(map[string]json.RawMessage)
	own := make(map[string]json.RawMessage)
	mine := namesOf(reflect.TypeFor[BridgeConfig]())
	for name, value := range fields {
		switch {
		case name == "policy":
		case mine[name]:
			own[name] = value
		default:
			others[name] = value
		}
	}
	var errs []error
	if err := readFields(own, &s.bridge); err != nil {
		errs = append(errs, err)
	} else {
		errs = append(errs, s.bridge.validate()...)
	}
	if rest, err := json.Marshal(others); err != nil {
		errs = append(errs, err)
	} else if err = json.Unmarshal(rest, &s.balancer); err != nil {
		errs = append(errs, fmt.Errorf("backstaygrpc: %w", err))
	}
	if policy != nil {
		var err error
		if s.balancer.Policy, err = parsePolicy(policy); err != nil {
			errs = append(errs, err)
		}
	}
	errs = append(errs, s.balancer.Validate(), onlyHTTP(&s.balancer))
	return s, errors.Join(errs...)
}

// onlyHTTP refuses settings that would have no effect.
func onlyHTTP(c *balancer.Config) error {
	var errs []error
	for name, set := range map[string]bool{
		"hashKey": c.HashKey != (balancer.HashKey{}), "h2c": c.H2C, "attemptTimeout": c.AttemptTimeout != 0,
		"connectTimeout": c.ConnectTimeout != 0, "conns": !reflect.ValueOf(c.Conns).IsZero(), "health.path": c.Health.Path != "",
	} {
		if set {
			errs = append(errs, fmt.Errorf("backstaygrpc: %s is set, want none: it is for HTTP", name))
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}

// namesOf lists the JSON names of a struct's fields.
func namesOf(t reflect.Type) map[string]bool {
	names := make(map[string]bool)
	for f := range t.Fields() {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "-" && name != "" {
			names[name] = true
		}
	}
	return names
}

// readFields reads values into the fields of the struct that to points to. Durations
// are strings, and names that are not known a mistake.
func readFields(fields map[string]json.RawMessage, to any) error {
	v := reflect.ValueOf(to).Elem()
	var errs []error
	known := make(map[string]reflect.Value)
	for f := range v.Type().Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" && f.IsExported() && f.Name != "Rand" { // a policy's
			name = strings.ToLower(f.Name[:1]) + f.Name[1:]
		}
		if name != "" && name != "-" {
			known[name] = v.FieldByIndex(f.Index)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		field, ok := known[name]
		if !ok {
			errs = append(errs, fmt.Errorf("backstaygrpc: %q is not known, want one of %s", name, quoted(slices.Sorted(maps.Keys(known)))))
			continue
		}
		if err := readField(fields[name], field); err != nil {
			errs = append(errs, fmt.Errorf("backstaygrpc: %s is %s, want %w", name, fields[name], err))
		}
	}
	return errors.Join(errs...)
}

func readField(data json.RawMessage, field reflect.Value) error {
	var text string
	switch field.Type() {
	case reflect.TypeFor[time.Duration]():
		d, err := time.Duration(0), json.Unmarshal(data, &text)
		if err == nil {
			d, err = time.ParseDuration(text)
		}
		if err != nil {
			return errors.New(`a duration such as "250ms"`)
		}
		field.SetInt(int64(d))
		return nil
	case reflect.TypeFor[balancer.Cost]():
		_ = json.Unmarshal(data, &text) // else it is no name
		cost, ok := costs()[text]
		if !ok {
			return errors.New("one of " + quoted(slices.Sorted(maps.Keys(costs()))))
		}
		field.Set(reflect.ValueOf(cost))
		return nil
	}
	if json.Unmarshal(data, field.Addr().Interface()) != nil {
		return fmt.Errorf("a %s", field.Type())
	}
	return nil
}

func costs() map[string]balancer.Cost {
	return map[string]balancer.Cost{
		"peak_ewma": balancer.PeakEWMA{}, "in_flight": balancer.InFlight{}, "load_report": balancer.LoadReport{},
	}
}

// policies are pointers to new policies, by the names that a service config has for
// them.
func policies() map[string]any {
	return map[string]any{
		"p2c": new(balancer.P2C), "least_request": new(balancer.LeastRequest), "round_robin": new(balancer.RoundRobin),
		"weighted_round_robin": new(balancer.WeightedRoundRobin), "random": new(balancer.Random),
		"rendezvous": new(balancer.Rendezvous), "maglev": new(balancer.Maglev),
	}
}

// parsePolicy reads {"name": {settings}}.
func parsePolicy(data json.RawMessage) (balancer.Policy, error) {
	var named map[string]map[string]json.RawMessage
	if err := json.Unmarshal(data, &named); err != nil || len(named) != 1 {
		return nil, fmt.Errorf(`backstaygrpc: policy is %s, want one with its settings, such as {"round_robin": {}}`, data)
	}
	known := policies()
	for name, fields := range named {
		p, ok := known[name]
		if !ok {
			return nil, fmt.Errorf("backstaygrpc: policy %q is not known, want one of %s", name, quoted(slices.Sorted(maps.Keys(known))))
		}
		if err := readFields(fields, p); err != nil {
			return nil, fmt.Errorf("policy %q: %w", name, err)
		}
		policy, _ := reflect.TypeAssert[balancer.Policy](reflect.ValueOf(p).Elem())
		return policy, nil
	}
	return nil, nil
}

func quoted(names []string) string { return `"` + strings.Join(names, `", "`) + `"` }
