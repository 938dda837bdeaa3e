package backstaygrpc

import (
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
)

// declaredIdempotent reports whether the method with that full name is declared to
// have no side effects or to be idempotent (option idempotency_level), as far as its
// descriptor is linked into this program.
func declaredIdempotent(method string) bool {
	level := idempotencyOf(method)
	return level == descriptorpb.MethodOptions_NO_SIDE_EFFECTS || level == descriptorpb.MethodOptions_IDEMPOTENT
}

// idempotencyOf returns what the descriptor says, IDEMPOTENCY_UNKNOWN if there is none.
func idempotencyOf(method string) descriptorpb.MethodOptions_IdempotencyLevel {
	const unknown = descriptorpb.MethodOptions_IDEMPOTENCY_UNKNOWN
	name := protoreflect.FullName(strings.ReplaceAll(strings.TrimPrefix(method, "/"), "/", "."))
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
	if err != nil {
		return unknown
	}
	descriptor, ok := found.(protoreflect.MethodDescriptor)
	if !ok {
		return unknown
	}
	options, ok := descriptor.Options().(*descriptorpb.MethodOptions)
	if !ok {
		return unknown
	}
	return options.GetIdempotencyLevel()
}
