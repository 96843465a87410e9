package xds

import (
	"fmt"
	"slices"
	"strings"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	rbacfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

const rbacFilter = "envoy.filters.http.rbac"

// denyAll is what holds where no route says otherwise.
func denyAll() *rbacfilterv3.RBAC {
	return &rbacfilterv3.RBAC{Rules: &rbacv3.RBAC{Action: rbacv3.RBAC_ALLOW}}
}

// access is what holds on a port. All rules are policies of the one route, so
// that a request is allowed if any of them covers it; a route for each would
// let only the first that matches speak.
func (e *encoder) access(in *mesh.Inbound, p mesh.InboundPort) *rbacfilterv3.RBACPerRoute {
	rules := denyAll()
	policies := map[string]*rbacv3.Policy{}
	if p.Mode == mesh.Permissive {
		policies[permissivePolicy] = &rbacv3.Policy{
			Permissions: []*rbacv3.Permission{e.permission(mesh.HTTPMatch{})},
			Principals:  []*rbacv3.Principal{{Identifier: &rbacv3.Principal_Any{Any: true}}},
		}
	} else {
		for _, r := range p.Rules {
			e.allow(policies, r, domains(in.TrustDomain, in.AlsoTrusted))
		}
	}
	if len(policies) > 0 {
		rules.Rules.Policies = policies
	}
	return &rbacfilterv3.RBACPerRoute{Rbac: rules}
}

// permissivePolicy is what allows everything in permissive mode.
const permissivePolicy = "permissive mode"

// allow adds a rule. A policy has the name of the object that the rule comes from,
// which is what access log and metrics call it; the rules of one object that are
// for the same callers are one policy.
func (e *encoder) allow(policies map[string]*rbacv3.Policy, r mesh.Rule, domains []string) {
	if len(r.Callers)+len(r.Groups) == 0 {
		return // nobody
	}
	callers := principals(names(domains, r.Callers, r.Groups))
	name := r.Source
	for n := 2; policies[name] != nil && !slices.EqualFunc(policies[name].Principals, callers, equal); n++ {
		name = fmt.Sprintf("%s (%d)", r.Source, n)
	}
	if policies[name] == nil {
		policies[name] = &rbacv3.Policy{Principals: callers}
	}
	policies[name].Permissions = append(policies[name].Permissions, e.permission(r.Match))
}

func equal(a, b *rbacv3.Principal) bool { return proto.Equal(a, b) }

// principals are the certificates that have a name which one of the matchers takes.
func principals(names []*matcherv3.StringMatcher) []*rbacv3.Principal {
	out := make([]*rbacv3.Principal, len(names))
	for i, name := range names {
		out[i] = &rbacv3.Principal{Identifier: &rbacv3.Principal_Authenticated_{Authenticated: &rbacv3.Principal_Authenticated{PrincipalName: name}}}
	}
	return out
}

func (e *encoder) permission(m mesh.HTTPMatch) *rbacv3.Permission {
	var all []*rbacv3.Permission
	if p := e.pathPermission(m.Path); p != nil {
		all = append(all, p)
	}
	for _, h := range e.headers(m) {
		all = append(all, &rbacv3.Permission{Rule: &rbacv3.Permission_Header{Header: h}})
	}
	switch len(all) {
	case 0:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_Any{Any: true}}
	case 1:
		return all[0]
	}
	return &rbacv3.Permission{Rule: &rbacv3.Permission_AndRules{AndRules: &rbacv3.Permission_Set{Rules: all}}}
}

// pathPermission compares the path without its query; nil is every path.
func (e *encoder) pathPermission(m mesh.StringMatch) *rbacv3.Permission {
	switch m.Kind {
	case mesh.Any:
		return nil
	case mesh.Prefix:
		prefix := strings.TrimSuffix(m.Value, "/")
		if prefix == "" {
			return nil
		}
		return &rbacv3.Permission{Rule: &rbacv3.Permission_OrRules{OrRules: &rbacv3.Permission_Set{Rules: []*rbacv3.Permission{
			urlPath(exact(prefix)),
			urlPath(e.matcher(mesh.StringMatch{Kind: mesh.Prefix, Value: prefix + "/"})),
		}}}}
	default:
		return urlPath(e.matcher(m))
	}
}

func urlPath(m *matcherv3.StringMatcher) *rbacv3.Permission {
	return &rbacv3.Permission{Rule: &rbacv3.Permission_UrlPath{UrlPath: &matcherv3.PathMatcher{Rule: &matcherv3.PathMatcher_Path{Path: m}}}}
}
