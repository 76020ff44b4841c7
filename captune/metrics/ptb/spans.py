"""naive first version, to be made linear"""
import re
def _blank(t): return t.replace(' ','\xa0').replace('\n','\xa0')
_EMAIL=re.compile(r'<?[A-Za-z0-9](?:[^ \t\n"()<>{|}\xa0]*)@(?:[^ \t\n"().<>{|}\xa0]+\.)*[^ \t\n"().<>{|}\xa0]+>?').match
_HTTP=re.compile(r'[hH][tT][tT][pP][sS]?://[^ \t\n"()<>{|}]+[^ \t\n!"(),\-.<>?{|}]').match
_WWW=re.compile(r'(?:[wW]{3}\.(?:[^ \t\n!"(),.<>?{|}]+\.)+[A-Za-z]{2,4})(?:/[^ \t\n"()<>|]+[^ \t\n!"(),\-.<>?{|}])?').match
_COM=re.compile(r'(?:(?:[^ \t\n!-"$\'(),\-./0-9:;<=>?@A-Z\[\\\]^_`{|}]+\.)+(?:[cC][oO][mM]|[nN][eE][tT]|[oO][rR][gG]|[eE][dD][uU]))(?:/[^ \t\n"()<>|]+[^ \t\n!"(),\-.<>?{|}])?').match
_N='[A-Za-z_][A-Za-z0-9_:.\\-]*'
_TAG=re.compile(r'''<(?:[!?][A-Za-z\-][^>\n]*|/[A-Za-z][A-Za-z0-9_:.\-]* *|%s(?: +%s(?: *= *(?:"[^"]*"|'[^']*'))?)* */?)>'''%(_N,_N)).match
_T1=re.compile(r"[A-Za-z0-9][A-Za-z0-9.,\xad]*(?:-[A-Za-z0-9\xad]+)+(?:(?<=-[A-Za-z])(?:\.[A-Za-z])+\.)?").match
_T1S=re.compile(r"([A-Za-z0-9][A-Za-z0-9.,\xad]*(?:-[A-Za-z0-9\xad]+)+\.)[,;:]").match
class Spans:
    def __init__(s,shape): s.shape=shape
    def longest(s,pos,best):
        e=best; rd=None
        for f,r in ((_EMAIL,lambda t:t),(_HTTP,lambda t:t),(_WWW,lambda t:t),(_COM,lambda t:t),(_TAG,_blank),(_T1,None)):
            m=f(s.shape,pos)
            if m and m.end()>e: e=m.end(); rd=r
        return e,rd
