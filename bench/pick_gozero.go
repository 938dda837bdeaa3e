package main

import (
	"fmt"
	"reflect"
	"unsafe"

	_ "github.com/zeromicro/go-zero/zrpc" // registers p2c_ewma
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/base"
	"google.golang.org/grpc/resolver"
)

// goZeroPicker makes a picker of go-zero's p2c_ewma. Its package is internal, so
// what makes the picker is taken out of the registered balancer. Going through
// that balancer would have a picker made for each connection that gets ready,
// over all of them: of ten thousand connections that takes far too long.
func goZeroPicker(n int) (balancer.Picker, error) {
	const name = "p2c_ewma"
	builder := reflect.ValueOf(balancer.Get(name))
	if builder.Kind() != reflect.Pointer || builder.IsNil() {
		return nil, fmt.Errorf("the balancer %s is a %s, want a pointer", name, builder.Kind())
	}
	field := builder.Elem().FieldByName("pickerBuilder")
	if !field.IsValid() {
		return nil, fmt.Errorf("the balancer %s has no field pickerBuilder", name)
	}
	exposed := reflect.NewAt(field.Type(), unsafe.Pointer(field.UnsafeAddr())).Elem()
	pickers, ok := reflect.TypeAssert[base.PickerBuilder](exposed)
	if !ok {
		return nil, fmt.Errorf("the pickerBuilder of %s is a %s", name, field.Type())
	}
	ready := make(map[balancer.SubConn]base.SubConnInfo, n)
	for i := range n {
		ready[new(grpcSubConn)] = base.SubConnInfo{Address: resolver.Address{Addr: nodeAddr(i)}}
	}
	return pickers.Build(base.PickerBuildInfo{ReadySCs: ready}), nil
}
