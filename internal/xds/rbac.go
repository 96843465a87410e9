package xds

import (
	"fmt"
	"strings"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	rbacfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

const rbacFilter = "envoy.filters.http.rbac"

// denyAll is what holds where no route says otherwise.
func denyAll() *rbacfilterv3.RBAC {
	return &rbacfilterv3.RBAC{Rules: &rbacv3.RBAC{Action: rbacv3.RBAC_ALLOW}}
}

// access is what holds on a port. All rules are on the one route, each a policy,
// so that a request is allowed if any of them covers it; a route for each would
// let only the first that matches speak.
func (e *encoder) access(in *mesh.Inbound, p mesh.InboundPort) *rbacfilterv3.RBACPerRoute {
	if p.Mode == mesh.Permissive {
		return &rbacfilterv3.RBACPerRoute{} // no rules: everyone
	}
	rules := denyAll()
	for i, r := range p.Rules {
		if len(r.Callers)+len(r.Groups) == 0 {
			continue // nobody
		}
		if rules.Rules.Policies == nil {
			rules.Rules.Policies = map[string]*rbacv3.Policy{}
		}
		rules.Rules.Policies[fmt.Sprintf("%03d %s", i, r.Source)] = &rbacv3.Policy{
			Permissions: []*rbacv3.Permission{e.permission(r.Match)},
			Principals:  principals(names(in.TrustDomain, r.Callers, r.Groups)),
		}
	}
	return &rbacfilterv3.RBACPerRoute{Rbac: rules}
}

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
