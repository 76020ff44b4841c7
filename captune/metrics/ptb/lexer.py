from __future__ import annotations
import re
from captune.metrics.ptb.characters import *
from captune.metrics.ptb.rules import RULES_BY_FIRST
from captune.metrics.ptb.words import *
from captune.metrics.ptb.spans import Spans

_SKIP = re.compile("[ \t\xa0\u2003\x00-\x08\x0b-\x1f\x7f‐]+").match
_ABBR = re.compile(r"([A-Za-z]{2,6}(?:\.[dD])?)\.").match
def _special(w):
    # what case matters
    return w
INNER={}; 
def _forms(words):
    d={}
    for w in words:
        low=w.replace('=','').lower()
        req=[]; i=0; k=0
        while i<len(w):
            if w[i]=='=': req.append((k,w[i+1])); i+=2
            else:
                if w[i].isupper(): req.append((k,w[i]))
                i+=1
            k+=1
        d[low]=req
    return d
ABBR={**{w:('I',r) for w,r in _forms(INNER_ABBREVIATIONS).items()},**{w:('E',r) for w,r in _forms(ENDING_ABBREVIATIONS).items()},**{w:('N',[]) for w in NUMBER_ABBREVIATIONS}}
_ENDS=re.compile("[ \t\xa0\u2003\n\x85][ \t\xa0\u2003\n\x85A-ZÉ]").match
_NUM=re.compile("[ \t\xa0\u2003\n\x85]?[0-9٠]").match

def lex(text):
    if not text.isascii() and max(text)>'\uffff': text=to_utf16_units(text)
    shape=shape_of(text)
    spans=Spans(shape)
    out=[]; pos=0; n=len(shape)
    while pos<n:
        m=_SKIP(shape,pos)
        if m:
            pos=m.end(); continue
        c=shape[pos]
        if c=='\n': out.append('\n'); pos+=1; continue
        best=-1; end=pos+1; rule=None
        if c.isascii() and c.isalpha():
            m=_ABBR(shape,pos)
            if m:
                k=ABBR.get(m[1].lower())
                if k and all(m[1][i]==ch for i,ch in k[1]):
                    e=m.end()
                    if k[0]=='I': best=e; end=e; rule=('',0)
                    elif k[0]=='N':
                        q=_NUM(shape,e)
                        if q: best=q.end(); end=e; rule=('',0)
                    elif _ENDS(shape,e): best=e+2; end=e; rule=('',1)
                    elif e+2<=n: best=e+2; end=e; rule=('',0)
                    else: best=e; end=e; rule=('',1)
        if rule: back=rule[1]; render=None
        for r in RULES_BY_FIRST.get(c,()):
            m=r.match(shape,pos)
            if m and (m.end()>best or m.end()==best and rule==('',0)):
                best=m.end(); end=m.end(1); rule=r; back=r.back; render=r.render
        e,rd=spans.longest(pos,best)
        if e>best: best=end=e; rule=1; back=0; render=rd
        if rule is None:
            if c!='٫': raise ValueError((text,pos,c))
            pos+=1; continue
        tok=text[pos:end]
        if shape[pos] in 'cglwCGLW' and end-pos in(5,6) and tok.lower() in SPLIT_WORDS and best==end:
            end=pos+SPLIT_WORDS[tok.lower()]; out.append(tok[:end-pos].lower()); pos=end; continue
        if render: tok=render(tok)
        elif '\xad' in tok: tok=tok.replace('\xad','') or '-'
        if tok: out.append(tok.lower())
        pos=end-back
    return out
